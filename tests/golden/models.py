"""The golden pairs as `transformers` loads and runs them, in float64."""

import contextlib
import sys
import tempfile
from unittest import mock

import peft
import quantized
import torch
from cases import HERE, config_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, repeat_kv

WITH_EXPERTS = (GptOssConfig, MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig)


def read(folder, case, dtype):
    """A model, of a quantized checkpoint the dequantized one."""
    auto = AutoModelForImageTextToText if case.with_images else AutoModelForCausalLM
    # The fast kernels for experts know no float64.
    experts = {"experts_implementation": "eager"} if case.config in WITH_EXPERTS else {}
    with tempfile.TemporaryDirectory() as plain:
        if quantized.is_quantized(folder):
            quantized.plain(folder, config_of(case, folder.name), plain)
            folder = plain
        return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **experts)


def load(folder, case, adapter=None):
    """A model in float64, with an adapter merged in float64; of one with images the text part."""
    model = read(folder, case, torch.float64)
    if adapter:
        if case.extra_tokens:
            model.resize_token_embeddings(case.shape["vocab_size"] + case.extra_tokens, mean_resizing=False)
        model = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
        model = model.to(torch.float64).merge_and_unload()
    if case.with_images:
        text = AutoModelForCausalLM.from_config(config_of(case, folder.name))
        text.model, text.lm_head = model.model.language_model, model.lm_head
        model = text
    return model.eval()


def load_pair(name, case):
    folder = HERE / name
    tuned = folder / ("tuned" if case.tuned_too or not case.adapter else "base")
    return (
        load(folder / "base", case, folder / "base_adapter" if case.base_adapter else None),
        load(tuned, case, folder / "adapter" if case.adapter else None),
    )


def run(model, ids):
    """What `transformers` gives each layer (arguments, hidden states first), what it gives the final norm, and the
    logits. The rotary module is made anew: the dynamic kind remembers longer prompts it has seen, and a prompt's values
    must not depend on those."""
    body = body_of(model)
    if getattr(body, "rotary_emb", None):
        body.rotary_emb = type(body.rotary_emb)(config=body.config)
    calls, last = [], []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for layer in layers_of(model)
    ]
    final_norm = next(getattr(body, name) for name in ("norm", "final_layer_norm", "final_layernorm", "ln_f") if hasattr(body, name))
    hooks.append(final_norm.register_forward_pre_hook(lambda _, args: last.append(args[0])))
    logits = model(ids, use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return calls, last[0], logits


def body_of(model):
    return getattr(model.base_model, "decoder", model.base_model)


def layers_of(model):
    body = body_of(model)
    return body.h if hasattr(body, "h") else body.layers


def call(layer, x, arguments):
    """A layer's output for hidden states `x` and the other arguments that `transformers` gave it."""
    args, kwargs = arguments
    out = layer(x, *args[1:], **kwargs)
    return out[0] if isinstance(out, tuple) else out


def norm_in_input_dtype(self, hidden_states):
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    weight = 1.0 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
    return weight * (hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + eps))


def router_in_input_dtype(self, hidden_states):
    logits = torch.nn.functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
    values, indices = torch.topk(torch.softmax(logits, dim=-1), self.top_k, dim=-1)
    if getattr(self, "norm_topk_prob", True):
        values = values / values.sum(dim=-1, keepdim=True)
    return logits, values, indices


def attention_in_input_dtype(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **kwargs):
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * (module.head_dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attention_of_gptj_in_input_dtype(self, query, key, value, attention_mask=None):
    out, weights = attention_in_input_dtype(self, query, key, value, attention_mask, scaling=1 / float(self.scale_attn))
    return out.transpose(1, 2), weights


def attention_of_gpt_neo_in_input_dtype(self, query, key, value, attention_mask=None):
    rows, length = query.shape[-2], key.shape[-2]
    hidden = torch.where(self.bias[:, :, length - rows : length, :length], 0.0, -torch.inf).to(query.dtype)
    out, weights = attention_in_input_dtype(self, query, key, value, hidden, scaling=1.0)
    return out.transpose(1, 2), weights


def layer_norm_in_input_dtype(self, hidden_states):
    return torch.nn.functional.layer_norm(hidden_states, self.normalized_shape, eps=1e-5)


def rotate_neighbours_in_input_dtype(q, k, cos, sin):
    """Ernie's `apply_rotary_pos_emb`."""
    half = cos.shape[-1] // 2
    cos, sin = (table[..., :half].repeat_interleave(2, dim=-1).unsqueeze(1) for table in (cos, sin))

    def rotated(x):
        return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) * sin

    return rotated(q), rotated(k)


def angles_in_float64(self, x, position_ids):
    """The rotary table from the float32 frequencies transformers gives, but angle, cosine and sine in float64."""
    LlamaRotaryEmbedding.stock_forward(self, x, position_ids)  # lets the dynamic kind set its frequencies
    angle = position_ids[..., None].double() * self.inv_freq.double()
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling


def everything_float64_but_angles(model):
    stack = contextlib.ExitStack()
    modeling = sys.modules[type(layers_of(model)[0]).__module__]
    for norm in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
        stack.enter_context(mock.patch.object(norm, "forward", norm_in_input_dtype))
    for router in {type(module) for module in model.modules() if type(module).__name__.endswith("TopKRouter")}:
        if not router.__name__.startswith("GptOss"):  # whose softmax is of the input's type
            stack.enter_context(mock.patch.object(router, "forward", router_in_input_dtype))
    if hasattr(modeling, "OlmoLayerNorm"):
        stack.enter_context(mock.patch.object(modeling.OlmoLayerNorm, "forward", layer_norm_in_input_dtype))
    if hasattr(modeling, "Ernie4_5Model"):
        stack.enter_context(mock.patch.object(modeling, "apply_rotary_pos_emb", rotate_neighbours_in_input_dtype))
    if hasattr(modeling, "GPTJAttention"):
        stack.enter_context(mock.patch.object(modeling.GPTJAttention, "_attn", attention_of_gptj_in_input_dtype))
    elif hasattr(modeling, "GPTNeoSelfAttention"):
        stack.enter_context(mock.patch.object(modeling.GPTNeoSelfAttention, "_attn", attention_of_gpt_neo_in_input_dtype))
    elif not any(hasattr(modeling, name) for name in ("FalconAttention", "GptOssAttention")):  # whose softmax is of the input's type
        stack.enter_context(mock.patch.object(modeling, "eager_attention_forward", attention_in_input_dtype))
    return stack


def everything_float64(model):
    stack = everything_float64_but_angles(model)
    LlamaRotaryEmbedding.stock_forward = LlamaRotaryEmbedding.forward
    stack.enter_context(mock.patch.object(LlamaRotaryEmbedding, "forward", angles_in_float64))
    return stack
