"""Makes the checkpoints of a golden pair, as `transformers` and `peft` save them; everything is seeded by the case's name."""

import collections
import json
import shutil
import zlib

import peft
import quantized
import torch
from cases import HERE, config_of
from models import read
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Mistral3Config,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
)


def spread(name, parameter, case):
    """Standard deviation of a tensor's entries: large enough that attention is far from uniform and every tensor matters."""
    if is_norm(name):
        return 0.2
    if name.endswith(("bias", "sinks")):
        return 0.3
    if any(part in name for part in ("embed", "lm_head", ".wte.", ".wpe.")):
        return 0.5
    return case.matrix_std


def is_norm(name):
    return ("norm" in name or ".ln_" in name) and name.endswith("weight")


def make_base(case, generator):
    model = AutoModelForCausalLM.from_config(config_of(case, "base"))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Some norms multiply with 1 + weight.
        adds_one = any(family in model.config.model_type for family in ("gemma", "nemotron"))
        center = 1.0 if is_norm(name) and not adds_one else 0.0
        parameter.data = spread(name, parameter, case) * noise + center
    return to_storage(model, case.base_dtype, case)


def make_tuned(case, base, generator):
    model = AutoModelForCausalLM.from_config(config_of(case, "tuned"))
    base_weights = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        kept = base_weights[name].data.float()
        tail = torch.randn((parameter.shape[0] - kept.shape[0], *kept.shape[1:]), generator=generator)
        start = torch.cat([kept, spread(name, parameter, case) * tail])
        noise = torch.randn(parameter.shape, generator=generator)
        is_shared = any(part in name for part in case.shared)
        parameter.data = start if is_shared else start + case.noise * spread(name, parameter, case) * noise
    return to_storage(model, case.tuned_dtype, case)


def to_storage(model, dtype, case):
    model.to(dtype)
    if case.norms_in_f32:
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data = parameter.data.float()
    return model


def save(model, folder, form, shard):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    (folder / "generation_config.json").unlink()
    for file in folder.iterdir():
        file.chmod(0o644)
    if form == "flat":
        flatten(folder)
    elif form != "v5":
        config = as_transformers_4(model.config, form)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def flatten(folder):
    """Qwen's first models of text and images: the text model's fields are the whole's own."""
    fields = json.loads((folder / "config.json").read_text())
    text = fields.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    fields = text | fields | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def pickle(folder, files=1):
    """Puts what a folder's only file has into files of `torch.save`, as older releases of models have it."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    path.unlink()
    if "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    stem = "adapter_model" if path.stem == "adapter_model" else "pytorch_model"
    if files == 1:
        state = collections.OrderedDict(tensors)
        state._metadata = collections.OrderedDict({"": {"version": 1}})  # as every state dict has it
        torch.save(state, folder / f"{stem}.bin")
        return
    names = [f"{stem}-{number + 1:05}-of-{files:05}.bin" for number in range(files)]
    weight_map = {name: names[index % files] for index, name in enumerate(tensors)}
    for file in names:
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def as_transformers_4(config, form):
    """config.json as transformers 4 wrote it.

    "v4" names the kind of scaling `rope_type`, "v4_type" by the older `type`; "v4_sparse" is as the first Llama
    conversions were: what has a default value is absent.
    """
    fields = config.to_dict()
    rope = fields.pop("rope_parameters")
    if "full_attention" in rope:
        if "gemma3" in config.model_type:
            fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    fields["rope_theta"] = rope.pop("rope_theta")
    fields["torch_dtype"] = fields.pop("dtype")
    kind = rope.pop("rope_type")
    name = "type" if form == "v4_type" else "rope_type"
    fields["rope_scaling"] = None if kind == "default" else rope | {name: kind}
    fields["transformers_version"] = "4.46.3"
    if config.model_type != "llama":
        if "partial_rotary_factor" in rope:
            fields["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
            fields["rope_scaling"] = None if kind == "default" else rope | {name: kind}
        if config.model_type == "gpt_neox":
            fields["rotary_pct"] = fields.pop("partial_rotary_factor")
            fields["rotary_emb_base"] = fields.pop("rope_theta")
        if "_sliding_window_pattern" in fields:
            fields["sliding_window_pattern"] = fields.pop("_sliding_window_pattern")
        if config.model_type == "qwen3_moe":
            fields["num_experts"] = fields.pop("num_local_experts")
        written_by_5 = {"layer_types", "no_rope_layers", "use_bidirectional_attention"}
        return {key: value for key, value in fields.items() if key not in written_by_5}
    written_by_4 = set(
        "architectures attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size "
        "initializer_range intermediate_size max_position_embeddings mlp_bias model_type num_attention_heads "
        "num_hidden_layers num_key_value_heads pretraining_tp rms_norm_eps rope_scaling rope_theta tie_word_embeddings "
        "torch_dtype transformers_version use_cache vocab_size".split()
    )
    if form == "v4_sparse":
        written_by_4 -= {"attention_bias", "attention_dropout", "head_dim", "mlp_bias"}
        written_by_4 -= {"num_key_value_heads", "rope_scaling", "rope_theta"}
        fields["transformers_version"] = "4.28.1"
    return {key: value for key, value in fields.items() if key in written_by_4}


def check_config(folder, wanted):
    """The config.json on disk must mean the same to transformers as the one the weights were made with."""

    def meaning(config):
        fields = config.to_dict()
        for key in "dtype transformers_version architectures _name_or_path sliding_window_pattern".split():
            fields.pop(key, None)
        # What the scaling is called by, in every form; partial rotation is a field of its own in version 4.
        ropes = fields.setdefault("rope_parameters", {})
        for rope in ropes.values() if "full_attention" in ropes else [ropes]:
            rope.pop("type", None)
            rope.setdefault("partial_rotary_factor", 1.0)
        own = ("partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_theta", "rope_local_base_freq", "rope_scaling", "pretraining_tp")
        return {key: value for key, value in fields.items() if key not in own}

    loaded, wanted = meaning(AutoConfig.from_pretrained(folder)), meaning(wanted)
    differing = {key: (loaded.get(key), value) for key, value in wanted.items() if loaded.get(key) != value}
    assert not differing, (folder, differing)


def quantize(folder, how):
    if isinstance(how, dict):
        quantized.to_gguf(folder, how)
    elif how in ("mxfp4", "mxfp4_flat"):
        quantized.to_mxfp4(folder, how)
    elif how:
        quantized.to_fp8(folder, how)


def make_checkpoints(name, case):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    folder = HERE / name
    base = make_base(case, generator)
    if case.with_images:
        save(with_images(base), folder / "base", case.base_form, case.base_shard)
    else:
        save(base, folder / "base", case.base_form, case.base_shard)
        check_config(folder / "base", config_of(case, "base"))
        quantize(folder / "base", case.base_quantized)
        if case.pickled:
            pickle(folder / "base")
    if not case.adapter or case.tuned_too:
        tuned = make_tuned(case, base, generator)
        saved = with_images(tuned) if case.with_images else tuned
        save(saved, folder / "tuned", case.tuned_form, case.tuned_shard)
        if not case.with_images:
            check_config(folder / "tuned", config_of(case, "tuned"))
        quantize(folder / "tuned", case.tuned_quantized)
        if case.pickled:
            pickle(folder / "tuned", files=2)
    for which, config in (("adapter", case.adapter), ("base_adapter", case.base_adapter)):
        if config:
            make_adapter(folder, which, case, config, generator)


def with_images(text):
    """A model for text and images whose text part is `text`."""
    vision = dict(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=4)
    torch.manual_seed(0)
    if text.config.model_type == "mistral":
        # It is tied where nothing else is said.
        more = dict(vision_config=PixtralVisionConfig(**vision), tie_word_embeddings=text.config.tie_word_embeddings)
        config = Mistral3Config(text_config=text.config, image_token_index=60, **more)
    elif text.config.model_type.startswith("qwen"):
        whole = {"qwen2": Qwen2_5_VLConfig, "qwen3": Qwen3VLConfig}[text.config.model_type]
        fields = text.config.to_dict() | {"model_type": f"{whole.model_type}_text"}
        third = text.model.rotary_emb.inv_freq.shape[0] // 3
        fields["rope_parameters"]["mrope_section"] = [text.model.rotary_emb.inv_freq.shape[0] - 2 * third, third, third]
        vision = dict(depth=1, hidden_size=8, intermediate_size=4, num_heads=2, patch_size=2, out_hidden_size=text.config.hidden_size)
        if whole is Qwen3VLConfig:
            vision |= dict(num_position_embeddings=4, deepstack_visual_indexes=[])
        config = whole(text_config=fields, vision_config=vision, tie_word_embeddings=text.config.tie_word_embeddings)
    else:
        vision = SiglipVisionConfig(**vision)
        config = Gemma3Config(text_config=text.config, vision_config=vision, mm_tokens_per_image=1, image_token_index=60)
    model = AutoModelForImageTextToText.from_config(config).to(text.dtype)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    return model


def make_adapter(folder, which, case, config, generator):
    model = read(folder / "base", case, torch.float32)
    if case.extra_tokens:
        embedding = model.resize_token_embeddings(case.shape["vocab_size"] + case.extra_tokens, mean_resizing=False)
        embedding.weight.data += case.noise * torch.randn(embedding.weight.shape, generator=generator)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_A" in name or "lora_embedding_A" in name:
            parameter.data = noise
        elif "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = case.noise * case.matrix_std * noise
        elif parameter.requires_grad:  # biases, saved modules, DoRA's magnitudes
            parameter.data = parameter.data + case.noise * spread(name, parameter, case) * noise
    shutil.rmtree(folder / which, ignore_errors=True)
    model.save_pretrained(folder / which, save_embedding_layers=True if case.extra_tokens else "auto")
    (folder / which / "README.md").unlink()
    if case.pickled:
        pickle(folder / which)
    path = folder / which / "adapter_config.json"
    written = json.loads(path.read_text()) | {"base_model_name_or_path": "./base"}
    for field in ("target_modules", "target_parameters"):
        if isinstance(written[field], list):
            written[field].sort()  # a set, in the order of this run's hashes
    path.write_text(json.dumps(written, indent=1) + "\n")
    for file in path.parent.iterdir():
        file.chmod(0o644)
