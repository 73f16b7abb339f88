"""Quantized forms of a saved checkpoint, and what its weights are.

Every function takes a folder as `save_pretrained` leaves it (config.json, model.safetensors). `to_fp8`, `to_mxfp4` and `to_gguf` quantize it
in place; `plain` reads it back as ordinary float32 tensors by code that is not ours: PyTorch's float8, `transformers`' MXFP4, and the `gguf`
package. The `gguf` package quantizes to the formats of 32 elements; the K formats are quantized below, simply.
"""

import json
import pathlib
import tempfile

import gguf
import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

# ------------------------------------------------------------------------------------------------------------------ FP8

FP8_LARGEST = 448.0


def to_fp8(folder, kind, block=(8, 16)):
    """Quantize the matrices of the layers. `kind`: "block" (DeepSeek, Qwen), "tensor" (AutoFP8, vLLM), "row" (Meta's fbgemm),
    "compressed" (compressed-tensors, a factor for each row)."""
    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        is_quantized = ".layers." in name and tensor.dim() == 2 and not name.endswith("gate.weight")
        if not is_quantized:
            tensors[name] = tensor
            continue
        tensor = tensor.float()
        if kind == "block":
            rows, cols = -(-tensor.shape[0] // block[0]), -(-tensor.shape[1] // block[1])
            scale = torch.zeros(rows, cols)
            for row in range(rows):
                for col in range(cols):
                    part = tensor[row * block[0] : (row + 1) * block[0], col * block[1] : (col + 1) * block[1]]
                    scale[row, col] = part.abs().max() / FP8_LARGEST
            tensors[f"{name}_scale_inv"] = scale
        elif kind == "tensor":
            scale = tensor.abs().max() / FP8_LARGEST
            tensors[f"{name}_scale"] = scale
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor(0.5)
        else:
            scale = tensor.abs().amax(1, keepdim=True) / FP8_LARGEST
            if kind == "compressed":
                scale = scale.bfloat16()
            tensors[f"{name}_scale"] = scale
        factors = spread(scale.float(), tensor.shape, block)
        tensors[name] = (tensor / factors).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    config["quantization_config"] = {
        "block": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)},
        "tensor": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        "row": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        "compressed": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
            "ignore": ["lm_head"],
        },
    }[kind]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def spread(scale, shape, block):
    """One factor for each element."""
    if scale.numel() == 1 or scale.shape[1] == 1:
        return scale.expand(shape)
    return scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]


def from_fp8(folder):
    stored = load_file(folder / "model.safetensors")
    block = json.loads((folder / "config.json").read_text())["quantization_config"].get("weight_block_size", (1, 1))
    tensors = {}
    for name, tensor in stored.items():
        if "_scale" in name:
            continue
        scale = next((stored[name + ending] for ending in ("_scale", "_scale_inv") if name + ending in stored), None)
        tensors[name] = tensor if scale is None else tensor.float() * spread(scale.float(), tensor.shape, block)
    return tensors


# ---------------------------------------------------------------------------------------------------------------- MXFP4


def to_mxfp4(folder, kind):
    """Quantize experts: 32 numbers share a power of two. `kind`: "mxfp4", or "mxfp4_flat" with the bytes of a row in one dimension."""
    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        parts = tensor.float().transpose(1, 2).unflatten(-1, (-1, 32))
        exponent = torch.floor(torch.log2(parts.abs().amax(-1))) - 2  # the largest number is 6: 1.5 times two to the power of 2
        scaled = parts / torch.exp2(exponent)[..., None]
        codes = (scaled[..., None] - torch.tensor(FP4_VALUES)).abs().argmin(-1).to(torch.uint8)
        blocks = codes[..., 0::2] | codes[..., 1::2] << 4
        tensors[f"{name}_blocks"] = (blocks.flatten(-2) if kind == "mxfp4_flat" else blocks).contiguous()
        tensors[f"{name}_scales"] = (exponent + 127).to(torch.uint8).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def from_mxfp4(folder):
    stored = load_file(folder / "model.safetensors")
    tensors = {}
    for name, tensor in stored.items():
        if name.endswith("_blocks"):
            whole = name.removesuffix("_blocks")
            blocks = tensor if tensor.dim() == 4 else tensor.unflatten(-1, (-1, 16))
            tensors[whole] = convert_moe_packed_tensors(blocks, stored[f"{whole}_scales"], dtype=torch.float32)
        elif not name.endswith("_scales"):
            tensors[name] = tensor
    return tensors


# ----------------------------------------------------------------------------------------------------------------- GGUF

ARCHITECTURES = {"mixtral": "llama", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}

KEYS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


def to_gguf(folder, types):
    """Replace a folder's files by model.gguf, as llama.cpp's convert_hf_to_gguf.py would write it. `types`: the type of tensors
    whose name has a part, such as {"attn_q": "Q4_K", "": "Q8_0"}; the first that fits."""
    config = AutoConfig.from_pretrained(folder)
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    for file in folder.iterdir():
        file.unlink()
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    write_metadata(writer, config, architecture)
    for name, array in sorted(merge_experts(convert(tensors, config)).items()):
        gguf_name = name_map(config).get_name(name, (".weight", ".bias"))
        assert gguf_name, name
        kind = next(kind for part, kind in types.items() if part in gguf_name)
        if array.ndim == 1 or "ffn_gate_inp" in gguf_name:
            kind = "F32"
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name, quantize(array, kind), raw_dtype=kind)
    for name, factors in rope_factors(config).items():
        writer.add_tensor(name, factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_metadata(writer, config, architecture):
    fields = config.to_dict()
    for field, key in KEYS.items():
        value = fields.get(field)
        key = f"{architecture}.{key}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size or architecture not in ("llama", "phi3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if "full_attention" in rope:
        writer.add_float32(f"{architecture}.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        writer.add_uint32(f"{architecture}.attention.sliding_window_pattern", 6)
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope and rope["rope_type"] != "llama3":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rope_factors(config):
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        lists = {"short": rope["short_factor"], "long": rope["long_factor"]}
        return {f"rope_factors_{which}.weight": numpy.array(factors, numpy.float32) for which, factors in lists.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return {"rope_freqs.weight": (plain / scaled).float().numpy()}


def name_map(config):
    name = ARCHITECTURES.get(config.model_type, config.model_type)
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    return gguf.get_tensor_name_map(architecture, config.num_hidden_layers)


def is_paired(name, config):
    return config.model_type in ("llama", "mixtral", "granite") and any(part in name for part in ("q_proj", "k_proj"))


def heads_of(name, config):
    return config.num_attention_heads if "q_proj" in name else config.num_key_value_heads


def convert(tensors, config):
    """The changes that llama.cpp makes."""
    made = {}
    for name, array in tensors.items():
        if is_paired(name, config):
            heads = heads_of(name, config)
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        made[name] = numpy.ascontiguousarray(array)
    return made


def unconvert(tensors, config):
    """Undoes `convert`."""
    made = {}
    for name, array in tensors.items():
        if is_paired(name, config):
            heads = heads_of(name, config)
            array = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            array = array - 1
        made[name] = numpy.ascontiguousarray(array)
    return made


def merge_experts(tensors):
    """Experts one above the other, named without their number."""
    merged, made = {}, {}
    for name, array in tensors.items():
        before, found, after = name.partition(".experts.")
        if found:
            number, _, rest = after.partition(".")
            merged.setdefault(f"{before}.experts.{rest}", {})[int(number)] = array
        else:
            made[name] = array
    return made | {name: numpy.stack([parts[i] for i in range(len(parts))]) for name, parts in merged.items()}


def from_gguf(folder, config):
    """The tensors of model.gguf under the names of `transformers`, dequantized by the `gguf` package."""
    reader = gguf.GGUFReader(folder / "model.gguf")
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    # The names of `transformers` for those that are there, of all that the model may save.
    with tempfile.TemporaryDirectory() as saved:
        AutoModelForCausalLM.from_config(config).save_pretrained(saved)
        names = list(load_file(pathlib.Path(saved) / "model.safetensors"))
    tensors = {}
    for name in names:
        before, found, after = name.partition(".experts.")
        number, _, rest = after.partition(".")
        merged = f"{before}.experts.{rest}" if found else name
        array = stored[name_map(config).get_name(merged, (".weight", ".bias"))]
        tensors[name] = array[int(number)] if found else array
    tensors = unconvert(tensors, config)
    check_against_transformers(folder, config, tensors)
    return {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def check_against_transformers(folder, config, tensors):
    """For the architectures that `transformers` loads from GGUF: it must find the same."""
    if config.model_type not in ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text") or getattr(config, "attention_bias", False):
        return  # of biases it forgets the order of rows
    model = AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(folder / "model.gguf", return_tensors=True, model_to_load=model)["tensors"]
    for name, array in tensors.items():
        assert torch.equal(theirs[name].float(), torch.from_numpy(array)), name


# ------------------------------------------------------------------------------------------------- quantizing to K formats


def quantize(array, kind):
    name = kind.name
    if name in ("Q4_K", "Q5_K"):
        return quantize_k(array, 4 if name == "Q4_K" else 5)
    if name == "Q6_K":
        return quantize_6(array)
    return gguf.quantize(array, kind)


def halves(values):
    return values.astype(numpy.float16).view(numpy.uint8).reshape(*values.shape[:-1], -1)


def quantize_k(array, bits):
    """Blocks of 256 with 6-bit scales and offsets for each 32."""
    x = array.reshape(-1, 8, 32)
    low = numpy.minimum(x.min(2), 0.0)
    scale, offset = (x.max(2) - low) / (2**bits - 1), -low
    d = (scale.max(1, keepdims=True) / 63).astype(numpy.float16)
    m = (offset.max(1, keepdims=True) / 63).astype(numpy.float16)
    s = numpy.clip(numpy.round(scale / d), 0, 63).astype(numpy.uint8)
    t = numpy.clip(numpy.round(offset / m), 0, 63).astype(numpy.uint8)
    step, shift = d.astype(numpy.float32) * s, m.astype(numpy.float32) * t
    q = numpy.round((x + shift[..., None]) / numpy.maximum(step, 1e-9)[..., None])
    q = numpy.clip(q, 0, 2**bits - 1).astype(numpy.uint8)
    packed = numpy.concatenate(
        [s[:, :4] | (s[:, 4:] >> 4) << 6, t[:, :4] | (t[:, 4:] >> 4) << 6, (s[:, 4:] & 15) | (t[:, 4:] & 15) << 4], axis=1
    )
    lower = (q[:, 0::2] & 15 | (q[:, 1::2] & 15) << 4).reshape(len(x), 128)
    parts = [halves(d), halves(m), packed]
    if bits == 5:
        parts.append(sum((q[:, unit] >> 4) << unit for unit in range(8)).astype(numpy.uint8))
    return numpy.concatenate([*parts, lower], axis=1).reshape(*array.shape[:-1], -1)


def quantize_6(array):
    """Blocks of 256 with 8-bit scales for each 16."""
    x = array.reshape(-1, 16, 16)
    extreme = numpy.abs(x).max(2) / 31
    d = (extreme.max(1, keepdims=True) / 127).astype(numpy.float16)
    s = numpy.clip(numpy.round(extreme / d), -128, 127).astype(numpy.int8)
    step = d.astype(numpy.float32) * s
    q = numpy.clip(numpy.round(x / numpy.maximum(step, 1e-9)[..., None]), -32, 31) + 32
    q = q.astype(numpy.uint8).reshape(len(x), 2, 4, 32)  # halves, quarters, elements
    lower = numpy.stack([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], axis=2)
    upper = sum((q[:, :, quarter] >> 4) << (2 * quarter) for quarter in range(4)).astype(numpy.uint8)
    parts = [lower.reshape(len(x), 128), upper.reshape(len(x), 64), s.view(numpy.uint8), halves(d)]
    return numpy.concatenate(parts, axis=1).reshape(*array.shape[:-1], -1)


# -------------------------------------------------------------------------------------------------------------- reading


def is_quantized(folder):
    if (folder / "model.gguf").exists():
        return True
    return "quantization_config" in json.loads((folder / "config.json").read_text())


def plain(folder, config, target):
    """Write a quantized checkpoint to `target` as an ordinary one in float32."""
    if (folder / "model.gguf").exists():
        tensors = from_gguf(folder, config)
    elif config.model_type == "gpt_oss":
        tensors = from_mxfp4(folder)
    else:
        tensors = from_fp8(folder)
    config.save_pretrained(target)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, pathlib.Path(target) / "model.safetensors", metadata={"format": "pt"})
