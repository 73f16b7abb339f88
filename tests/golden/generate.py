#!/usr/bin/env python3
"""Make the golden pairs of this folder: small random models of every family and the values `tuco` must find on them.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 peft==0.21.2 gguf==0.19.0
    python tests/golden/generate.py            # writes every case again, in place (well under a minute)
    python tests/golden/generate.py lora gpt2  # only these
    python tests/golden/generate.py --compare  # writes nothing; prints how far other precisions move the values

Each case is `<case>/base`, `<case>/tuned` (checkpoints as `transformers` saves them) and `<case>/gold.json`; cases of adapters
have `<case>/adapter` (as `peft` saves it; on the base where there is no `tuned`) and perhaps `<case>/base_adapter`. Quantized
checkpoints are made, and read back as plain ones in float32, by `quantized.py`. Everything is seeded by the case's name, so a run
with the versions above rewrites the same bytes.

How the gold is computed. The stored (rounded) weights are read back by `transformers` and widened to float64; attention is
"eager"; each prompt runs alone, without padding. At every layer the base model's layer gets the tuned model's input to that
layer, with the base's own rotary table and mask (what `transformers` itself hands its layers, taken by hooks):

    ptc = base_layer(x) - x,   ftc = tuned_layer(x) - base_layer(x),   x = tuned_layer(x)

Gold values are of the last token, in L1 norms (see `measure`). `output_co` runs the base's layers on their own from the
tuned model's embedding.

Precision. `transformers` computes RMSNorm, softmax and the rotary tables in float32 even in a float64 model. `--compare` gives,
as the largest relative change of any gold number over all cases and prompts:

    against the gold written here                  TuCo      any of its norms
    stock transformers (float32 norm, softmax)     6.1e-5    6.1e-5   (light_f32; 1e-7 to 1.5e-6 where TuCo > 0.03)
    rotary angle, cos and sin in float64 as well   4.1e-7    5.1e-7   (the yarn cases; below 1e-7 elsewhere)

The first is not small, because ftc is a difference of nearly equal numbers when the fine-tune is light. So the gold uses
RMSNorm and softmax in float64 (replaced below); only the rotary tables stay transformers' own float32 ones.
"""

import argparse
import contextlib
import json
import pathlib
import random
import shutil
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from unittest import mock

import peft
import quantized
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
    SmolLM3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, repeat_kv

HERE = pathlib.Path(__file__).resolve().parent
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


# ---------------------------------------------------------------------------------------------------------------- the cases


@dataclass
class Case:
    """One pair. `shape` are fields of `config`, shared by both sides unless a field below says otherwise."""

    shape: dict
    noise: float  # tuned = base + noise * (spread of the tensor) * N(0, 1)
    config: type = LlamaConfig
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    tuned_rope: dict | None = None
    base_dtype: torch.dtype = BF16
    tuned_dtype: torch.dtype = BF16
    norms_in_f32: bool = False
    base_form: str = "v5"  # how config.json is written, see `write_config`
    tuned_form: str = "v5"
    base_shard: str | None = None  # `max_shard_size` of save_pretrained
    tuned_shard: str | None = None
    extra_tokens: int = 0  # rows the tuned vocabulary has beyond the base's
    shared: tuple = ()  # tensors whose name contains one of these keep their base bits
    adapter: dict | None = None  # fields of `LoraConfig`; without `tuned_too` the adapter is all that tuning did
    base_adapter: dict | None = None
    tuned_too: bool = False
    base_quantized: dict | str | None = None  # types of GGUF tensors, or a kind of FP8: see quantized.py
    tuned_quantized: dict | str | None = None
    with_images: bool = False  # saved as the text part of a Gemma 3 for text and images
    matrix_std: float = 0.2
    lengths: tuple = (1, 2, 7, 19, 40, 65)


def shape(hidden, heads, kv_heads, ffn, layers, vocab, **more):
    return dict(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        vocab_size=vocab,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
    ) | more


CASES = {
    "llama_mha_untied_f32": Case(
        shape(30, 5, 5, 53, 2, 97), 0.1, base_dtype=F32, tuned_dtype=F32, base_form="v4", tuned_form="v4"
    ),
    "llama_gqa_tied_bf16": Case(shape(48, 6, 2, 53, 2, 131, tie_word_embeddings=True), 0.05),
    # The attention's inner width (5 * 12) is neither the hidden size nor hidden / heads * heads.
    "llama_head_dim": Case(shape(40, 5, 1, 67, 2, 83, head_dim=12), 0.3, base_dtype=F16, tuned_dtype=F16, base_form="v4"),
    "llama_biases": Case(shape(36, 6, 3, 59, 2, 89, attention_bias=True, mlp_bias=True), 0.2, tuned_form="v4"),
    "attention_bias_only": Case(shape(24, 4, 2, 43, 2, 61, attention_bias=True), 0.15),
    "rope_llama3": Case(
        shape(48, 4, 2, 45, 2, 73, max_position_embeddings=256, eos_token_id=[2, 3]),
        0.1,
        # Wavelengths 6.3, 17.7, 50, 141, ... : one in the untouched band, one in the smooth band, the rest divided.
        rope={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        base_form="v4",
    ),
    "rope_linear": Case(
        shape(32, 4, 4, 39, 2, 67),
        0.1,
        rope={"rope_type": "linear", "rope_theta": 10000, "factor": 4},  # whole numbers, as many configs have
        base_form="v4_type",
    ),
    # Longer prompts than max_position_embeddings get their own base frequency each; 24 and 25 stand at the border.
    "rope_dynamic": Case(
        shape(40, 4, 2, 41, 2, 71, max_position_embeddings=24),
        0.1,
        rope={"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0},
        base_form="v4_type",
        lengths=(65, 1, 7, 24, 25, 40),
    ),
    "rope_yarn": Case(
        shape(48, 3, 1, 47, 2, 79),
        0.1,
        rope={"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32},
        base_form="v4_type",
    ),
    "rope_yarn_ramp": Case(
        shape(32, 2, 2, 51, 2, 63),
        0.1,
        rope={
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.3,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
        base_form="v4",
    ),
    # No original_max_position_embeddings: it defaults to max_position_embeddings.
    "rope_yarn_mscale": Case(
        shape(32, 2, 1, 49, 2, 69, max_position_embeddings=80),
        0.1,
        rope={"rope_type": "yarn", "rope_theta": 200.0, "factor": 4.0, "mscale": 0.9, "mscale_all_dim": 0.4},
        base_form="v4",
    ),
    # A long-context fine-tune: each side rotates with its own table.
    "rope_differs": Case(
        shape(32, 4, 2, 37, 2, 65),
        0.05,
        rope={"rope_type": "default", "rope_theta": 10000.0},
        tuned_rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ),
    "sharded": Case(shape(32, 4, 2, 49, 3, 101), 0.03, base_dtype=F32, base_shard="24KB", tuned_shard="30KB"),
    # Layers 0 and 2 wholly identical, in 1 only what makes the attention scores, in 3 only the MLP.
    "shared_tensors": Case(
        shape(32, 4, 2, 47, 4, 77),
        0.1,
        shared=("layers.0.", "layers.2.", "1.input_layernorm", "1.self_attn.q_proj", "1.self_attn.k_proj", "3.mlp"),
    ),
    "config_v4": Case(shape(32, 4, 4, 57, 2, 91, rms_norm_eps=1e-6), 0.08, base_form="v4", tuned_form="v4_sparse"),
    "config_v5": Case(shape(32, 4, 2, 55, 2, 93), 0.08, rope={"rope_type": "default", "rope_theta": 500000.0}),
    "vocab_tail": Case(shape(24, 3, 1, 35, 3, 61), 0.2, extra_tokens=5),
    "vocab_tail_tied": Case(shape(24, 3, 1, 35, 2, 64, tie_word_embeddings=True), 0.02, extra_tokens=3),
    "light_bf16": Case(shape(48, 6, 3, 67, 3, 113), 0.0012, matrix_std=0.15),
    "light_f32": Case(shape(32, 4, 2, 41, 3, 87), 0.001, base_dtype=F32, tuned_dtype=F32, matrix_std=0.15),
    "mixed_dtypes": Case(shape(32, 4, 2, 43, 2, 81), 0.05, norms_in_f32=True),
    "heavy": Case(shape(32, 4, 2, 63, 2, 85, rms_norm_eps=0.02), 0.6),
    "gelu_tanh": Case(shape(32, 4, 2, 45, 2, 75, hidden_act="gelu_pytorch_tanh"), 0.1),
    "gelu_erf": Case(shape(32, 4, 2, 45, 2, 75, hidden_act="gelu"), 0.1),
    # The other families. Windows are shorter than most of the prompts.
    "mistral": Case(shape(32, 4, 2, 41, 3, 67, head_dim=12, sliding_window=9), 0.1, MistralConfig, base_form="v4"),
    "mistral_no_window": Case(shape(24, 4, 4, 33, 2, 63, sliding_window=None), 0.1, MistralConfig, tuned_form="v4"),
    "gemma": Case(shape(30, 3, 1, 41, 2, 71, head_dim=16, hidden_act="gelu_pytorch_tanh"), 0.1, GemmaConfig, base_form="v4"),
    "gemma2": Case(
        shape(32, 4, 2, 37, 3, 69, head_dim=10, sliding_window=11, query_pre_attn_scalar=24, attn_logit_softcapping=15.0),
        0.1,
        Gemma2Config,
        base_form="v4",
    ),
    # Wide heads, with prompts of more than 128 tokens: what attention on Hopper has kernels of its own for.
    "gemma2_wide_heads": Case(
        shape(
            40, 2, 1, 48, 2, 61, head_dim=64, sliding_window=90, query_pre_attn_scalar=64, attn_logit_softcapping=15.0,
            max_position_embeddings=256,
        ),
        0.1,
        Gemma2Config,
        lengths=(1, 40, 66, 150, 200),
    ),
    "gemma3_layer_types": Case(
        shape(
            32, 4, 1, 37, 3, 65, head_dim=12, sliding_window=8, query_pre_attn_scalar=20,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        0.1,
        Gemma3TextConfig,
        rope={
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "gemma3_pattern": Case(
        shape(20, 4, 2, 25, 6, 61, head_dim=8, sliding_window=10, query_pre_attn_scalar=8),
        0.05,
        Gemma3TextConfig,
        rope={
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
        base_form="v4",
        tuned_form="v4",
    ),
    "gemma3_with_images": Case(
        shape(20, 4, 2, 25, 6, 61, head_dim=8, sliding_window=10, query_pre_attn_scalar=8),
        0.05,
        Gemma3TextConfig,
        rope={
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
        adapter=dict(r=2, lora_alpha=2, target_modules="all-linear"),
        with_images=True,
    ),
    "qwen2": Case(shape(32, 4, 2, 43, 2, 75, tie_word_embeddings=True), 0.1, Qwen2Config, base_form="v4"),
    "qwen2_window": Case(
        shape(32, 4, 2, 39, 3, 67, use_sliding_window=True, sliding_window=7, max_window_layers=1),
        0.1,
        Qwen2Config,
        tuned_form="v4",
    ),
    "qwen3": Case(shape(30, 5, 1, 41, 3, 71, head_dim=12), 0.1, Qwen3Config, base_form="v4"),
    # Light changes of the keys before their norm and of the norm itself.
    "qwen3_light": Case(shape(32, 4, 2, 43, 2, 67, head_dim=8, attention_bias=True), 0.001, Qwen3Config, base_dtype=F32, tuned_dtype=F32),
    "phi3": Case(shape(32, 4, 4, 41, 2, 67, sliding_window=13, pad_token_id=0), 0.1, Phi3Config, base_form="v4"),
    # 65 tokens are more than the original length: they get the long factors. 6 of 12 dimensions are rotated.
    "phi3_longrope": Case(
        shape(48, 4, 2, 37, 2, 63, original_max_position_embeddings=40, pad_token_id=0),
        0.1,
        Phi3Config,
        rope={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.3],
            "long_factor": [1.2, 2.5, 6.0],
            "original_max_position_embeddings": 40,
        },
        lengths=(65, 1, 7, 40, 41, 19),
        base_form="v4_type",
    ),
    "olmo2": Case(shape(32, 4, 2, 41, 2, 71), 0.1, Olmo2Config, base_form="v4"),
    "granite": Case(
        shape(
            32, 4, 2, 41, 3, 71, embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2,
            attention_bias=True, mlp_bias=True, logits_scaling=8.0,
        ),
        0.1,
        GraniteConfig,
        base_form="v4",
    ),
    # Adapters. In `peft` the entries of B begin as zeros; here every part is random, of the strength `noise`.
    "lora": Case(
        shape(48, 6, 2, 53, 2, 83),
        0.1,
        adapter=dict(
            r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            rank_pattern={"k_proj": 2, r"layers\.1\.mlp\.up_proj": 4}, alpha_pattern={"down_proj": 7, "0.self_attn.v_proj": 2},
        ),
    ),
    # So light that merging it into bf16 weights would round most of it away.
    "lora_light": Case(
        shape(48, 6, 2, 53, 3, 83),
        0.001,
        adapter=dict(r=4, lora_alpha=8, use_rslora=True, target_modules=r".*\.(q|v)_proj"),
        matrix_std=0.15,
    ),
    "lora_dora": Case(
        shape(32, 4, 2, 37, 2, 69, head_dim=10, sliding_window=11, query_pre_attn_scalar=24),
        0.1,
        Gemma2Config,
        adapter=dict(r=2, lora_alpha=4, use_dora=True, target_modules="all-linear"),
    ),
    "lora_saved_modules": Case(
        shape(36, 6, 3, 47, 2, 71, attention_bias=True, mlp_bias=True),
        0.1,
        adapter=dict(
            r=2, lora_alpha=2, bias="all", target_modules=["q_proj", "up_proj"],
            modules_to_save=["embed_tokens", "input_layernorm", "lm_head"],
        ),
    ),
    "lora_fused": Case(
        shape(32, 4, 2, 41, 2, 67, pad_token_id=0),
        0.1,
        Phi3Config,
        adapter=dict(r=3, lora_alpha=3, target_modules=["qkv_proj", "gate_up_proj"]),
    ),
    "lora_both_sides": Case(
        shape(32, 4, 2, 41, 2, 67),
        0.1,
        Qwen3Config,
        adapter=dict(r=2, lora_alpha=4, target_modules="all-linear"),
        base_adapter=dict(r=3, lora_alpha=3, target_modules=["k_proj", "down_proj"]),
    ),
    "lora_on_tuned": Case(
        shape(32, 4, 2, 41, 2, 67), 0.05, adapter=dict(r=2, lora_alpha=4, target_modules=["k_proj", "o_proj"]), tuned_too=True
    ),
    # The embedding is stored transposed in its adapter.
    "lora_embedding": Case(
        shape(36, 6, 3, 47, 2, 71, tie_word_embeddings=True), 0.1, adapter=dict(r=3, lora_alpha=6, target_modules=["embed_tokens", "q_proj"])
    ),
    "lora_gpt2": Case(
        dict(n_embd=32, n_head=4, n_layer=2, n_inner=41, n_positions=70, vocab_size=67, bos_token_id=1, eos_token_id=2),
        0.1,
        GPT2Config,
        rope=None,
        adapter=dict(r=3, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc", "wte", "wpe"], fan_in_fan_out=True),
    ),
    "lora_gpt2_dora": Case(
        dict(n_embd=32, n_head=4, n_layer=2, n_inner=41, n_positions=70, vocab_size=67, bos_token_id=1, eos_token_id=2),
        0.1,
        GPT2Config,
        rope=None,
        adapter=dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], use_dora=True, fan_in_fan_out=True),
    ),
    # All experts of a layer together.
    "lora_experts": Case(
        shape(24, 4, 2, 21, 2, 61, num_local_experts=5, num_experts_per_tok=2),
        0.1,
        MixtralConfig,
        adapter=dict(
            r=3, lora_alpha=6, target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], use_rslora=True,
        ),
    ),
    "lora_experts_down": Case(
        shape(
            24, 4, 2, 29, 3, 61, head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=13, mlp_only_layers=[1],
        ),
        0.1,
        Qwen3MoeConfig,
        adapter=dict(r=2, lora_alpha=4, target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"]),
    ),
    "mixtral": Case(shape(24, 4, 2, 21, 2, 61, num_local_experts=5, num_experts_per_tok=2), 0.1, MixtralConfig, base_form="v4"),
    # The second layer has one MLP.
    "qwen3_moe": Case(
        shape(
            24, 4, 2, 29, 3, 61, head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=13, mlp_only_layers=[1],
        ),
        0.1,
        Qwen3MoeConfig,
        tuned_form="v4",
    ),
    "gpt_neox": Case(
        shape(32, 4, 4, 41, 2, 67, layer_norm_eps=1e-5, use_parallel_residual=True),
        0.1,
        GPTNeoXConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        base_form="v4",
    ),
    "gpt_neox_sequential": Case(
        shape(32, 4, 4, 41, 2, 67, layer_norm_eps=1e-3, use_parallel_residual=False, hidden_act="gelu_new"),
        0.1,
        GPTNeoXConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        adapter=dict(r=2, lora_alpha=4, target_modules=["query_key_value", "dense_h_to_4h"]),
    ),
    "gpt2": Case(
        dict(n_embd=32, n_head=4, n_layer=2, n_inner=41, n_positions=70, vocab_size=67, bos_token_id=1, eos_token_id=2),
        0.1,
        GPT2Config,
        rope=None,
    ),
    "smollm3": Case(shape(24, 4, 2, 33, 5, 61, pad_token_id=0), 0.1, SmolLM3Config, base_form="v4"),
    # Quantized checkpoints. FP8: blocks that do not divide the matrices, fused tensors, experts.
    "fp8_blocks": Case(shape(36, 4, 2, 45, 2, 67, head_dim=10), 0.1, Qwen3Config, base_quantized="block", tuned_quantized="block"),
    "fp8_tensor": Case(
        shape(32, 4, 4, 41, 2, 67, pad_token_id=0), 0.1, Phi3Config, base_quantized="tensor", tuned_quantized="tensor", base_form="v4"
    ),
    "fp8_row": Case(
        shape(24, 4, 2, 21, 2, 61, num_local_experts=5, num_experts_per_tok=2), 0.1, MixtralConfig, base_quantized="row", tuned_quantized="row"
    ),
    # An adapter on a quantized fine-tune.
    "fp8_compressed": Case(
        shape(32, 4, 2, 41, 2, 67, tie_word_embeddings=True),
        0.05,
        base_quantized="compressed",
        tuned_quantized="compressed",
        adapter=dict(r=2, lora_alpha=4, target_modules="all-linear"),
        tuned_too=True,
    ),
    # GGUF: every type, and what llama.cpp changes in a family's tensors. K types need rows of 256.
    "gguf_q4_0": Case(shape(64, 4, 2, 96, 2, 67), 0.1, base_quantized={"": "Q4_0"}, tuned_quantized={"token_embd": "F16", "": "Q4_0"}),
    "gguf_q4_1": Case(
        shape(64, 8, 2, 96, 2, 67, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        0.1,
        rope={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        base_quantized={"token_embd": "Q8_0", "": "Q4_1"},
        tuned_quantized={"token_embd": "Q8_0", "": "Q4_1"},
    ),
    # A fine-tune of the original weights, as people have it.
    "gguf_q8_0": Case(shape(64, 4, 2, 96, 2, 67, head_dim=24), 0.1, Qwen3Config, base_quantized={"": "Q8_0"}),
    "gguf_k": Case(
        shape(256, 4, 1, 32, 2, 41, head_dim=8),
        0.1,
        matrix_std=0.1,
        base_quantized={"attn_q": "Q4_K", "attn_k": "Q6_K", "attn_v": "Q5_K", "ffn_up": "Q6_K", "ffn_gate": "Q4_K", "token_embd": "Q6_K", "": "Q8_0"},
        adapter=dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "up_proj"]),
    ),
    "gguf_q5": Case(
        shape(64, 4, 4, 96, 2, 67),
        0.1,
        Qwen2Config,
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        base_quantized={"attn": "Q5_0", "ffn": "Q5_1", "": "BF16"},
        tuned_quantized={"attn": "Q5_1", "ffn": "Q5_0", "": "BF16"},
    ),
    "gguf_phi3": Case(
        shape(64, 4, 4, 96, 2, 63, original_max_position_embeddings=40, pad_token_id=0, sliding_window=30),
        0.1,
        Phi3Config,
        rope={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.3, 1.4],
            "long_factor": [1.2, 2.5, 6.0, 7.0],
            "original_max_position_embeddings": 40,
        },
        base_quantized={"": "Q8_0"},
        tuned_quantized={"": "Q8_0"},
    ),
    "gguf_gemma": Case(
        shape(32, 2, 1, 64, 2, 61, head_dim=32, hidden_act="gelu_pytorch_tanh"), 0.1, GemmaConfig, base_quantized={"": "Q8_0"}
    ),
    "gguf_gemma2": Case(
        shape(32, 2, 1, 64, 3, 61, head_dim=32, sliding_window=11, query_pre_attn_scalar=32, attn_logit_softcapping=15.0),
        0.1,
        Gemma2Config,
        base_quantized={"": "Q8_0"},
        tuned_quantized={"": "F16"},
    ),
    "gguf_gemma3": Case(
        shape(32, 2, 1, 64, 6, 61, head_dim=32, sliding_window=10, query_pre_attn_scalar=32),
        0.05,
        Gemma3TextConfig,
        rope={
            "full_attention": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
        base_quantized={"": "Q8_0"},
    ),
    "gguf_mixtral": Case(
        shape(32, 4, 2, 32, 2, 61, num_local_experts=4, num_experts_per_tok=2), 0.1, MixtralConfig, base_quantized={"": "Q8_0"}
    ),
    "gguf_qwen3_moe": Case(
        shape(
            32, 4, 2, 29, 2, 61, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True,
        ),
        0.1,
        Qwen3MoeConfig,
        base_quantized={"": "Q8_0"},
    ),
    "gguf_granite": Case(
        shape(32, 4, 2, 64, 2, 61, embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2, logits_scaling=8.0),
        0.1,
        GraniteConfig,
        base_quantized={"": "Q8_0"},
    ),
}


# -------------------------------------------------------------------------------------------------------- making checkpoints


def config_of(case, side):
    rope = case.tuned_rope if side == "tuned" and case.tuned_rope else case.rope
    fields = case.shape | ({"rope_parameters": dict(rope)} if rope else {})
    if side == "tuned":
        fields["vocab_size"] += case.extra_tokens
    return case.config(**fields)


def spread(name, parameter, case):
    """Standard deviation of a tensor's entries: large enough that attention is far from uniform and every tensor matters."""
    if is_norm(name):
        return 0.2
    if name.endswith("bias"):
        return 0.3
    if any(part in name for part in ("embed_", "lm_head", ".wte.", ".wpe.")):
        return 0.5
    return case.matrix_std


def is_norm(name):
    return ("norm" in name or ".ln_" in name) and name.endswith("weight")


def make_base(case, generator):
    model = AutoModelForCausalLM.from_config(config_of(case, "base"))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Gemma's norms multiply with 1 + weight.
        center = 1.0 if is_norm(name) and "gemma" not in model.config.model_type else 0.0
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
    if form != "v5":
        config = as_transformers_4(model.config, form)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def as_transformers_4(config, form):
    """config.json as transformers 4 wrote it.

    "v4" names the kind of scaling `rope_type`, "v4_type" by the older `type`; "v4_sparse" is as the first Llama
    conversions were: what has a default value is absent.
    """
    fields = config.to_dict()
    rope = fields.pop("rope_parameters")
    if "full_attention" in rope:
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
    if not case.adapter or case.tuned_too:
        tuned = make_tuned(case, base, generator)
        save(tuned, folder / "tuned", case.tuned_form, case.tuned_shard)
        check_config(folder / "tuned", config_of(case, "tuned"))
        quantize(folder / "tuned", case.tuned_quantized)
    for which, config in (("adapter", case.adapter), ("base_adapter", case.base_adapter)):
        if config:
            make_adapter(folder, which, case, config, generator)


def with_images(text):
    """A Gemma 3 for text and images whose text part is `text`."""
    vision = SiglipVisionConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=4
    )
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text.config, vision_config=vision, mm_tokens_per_image=1, image_token_index=60)
    model = Gemma3ForConditionalGeneration(config).to(text.dtype)
    model.model.language_model.load_state_dict(text.model.state_dict())
    return model


def make_adapter(folder, which, case, config, generator):
    model = read(folder / "base", case, torch.float32)
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
    model.save_pretrained(folder / which)
    (folder / which / "README.md").unlink()
    path = folder / which / "adapter_config.json"
    written = json.loads(path.read_text()) | {"base_model_name_or_path": "./base"}
    for field in ("target_modules", "target_parameters"):
        if isinstance(written[field], list):
            written[field].sort()  # a set, in the order of this run's hashes
    path.write_text(json.dumps(written, indent=1) + "\n")
    for file in path.parent.iterdir():
        file.chmod(0o644)


# ------------------------------------------------------------------------------------------------------------ the gold values


def read(folder, case, dtype):
    """A model, of a quantized checkpoint the dequantized one."""
    auto = AutoModelForImageTextToText if case.with_images else AutoModelForCausalLM
    # The fast kernels for experts know no float64.
    experts = {"experts_implementation": "eager"} if case.config in (MixtralConfig, Qwen3MoeConfig) else {}
    with tempfile.TemporaryDirectory() as plain:
        if quantized.is_quantized(folder):
            quantized.plain(folder, config_of(case, folder.name), plain)
            folder = plain
        return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **experts)


def load(folder, case, adapter=None):
    """A model in float64, with an adapter merged in float64; of one with images the text part."""
    model = read(folder, case, torch.float64)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
        model = model.to(torch.float64).merge_and_unload()
    if case.with_images:
        text = Gemma3ForCausalLM(model.config.text_config)
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
    body = model.base_model
    if hasattr(body, "rotary_emb"):
        body.rotary_emb = type(body.rotary_emb)(config=model.config)
    calls, last = [], []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for layer in layers_of(model)
    ]
    final_norm = next(getattr(body, name) for name in ("norm", "final_layer_norm", "ln_f") if hasattr(body, name))
    hooks.append(final_norm.register_forward_pre_hook(lambda _, args: last.append(args[0])))
    logits = model(ids, use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return calls, last[0], logits


def layers_of(model):
    return model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers


def call(layer, x, arguments):
    """A layer's output for hidden states `x` and the other arguments that `transformers` gave it."""
    args, kwargs = arguments
    out = layer(x, *args[1:], **kwargs)
    return out[0] if isinstance(out, tuple) else out


def l1(hidden):
    """L1 norm of the last token's row."""
    return hidden[0, -1].abs().sum().item()


def share(part, rest):
    return part / (rest + part) if part else 0.0


@torch.no_grad()
def measure(base, tuned, token_ids):
    ids = torch.tensor([token_ids])
    tuned_run, last, logits = run(tuned, ids)
    # Only what depends on positions is taken from the base's run, so any tokens do.
    base_run, _, _ = run(base, torch.zeros_like(ids))
    x0 = x = tuned_run[0][0][0]
    ptc_sum, ftc_sum = torch.zeros_like(x), torch.zeros_like(x)
    ptc_norms, ftc_norms = [], []
    layers = zip(layers_of(base), base_run, layers_of(tuned), tuned_run, strict=True)
    for base_layer, base_arguments, tuned_layer, tuned_arguments in layers:
        torch.testing.assert_close(x, tuned_arguments[0][0], rtol=1e-12, atol=1e-12)
        base_out = call(base_layer, x, base_arguments)
        tuned_out = call(tuned_layer, x, tuned_arguments)
        ptc_sum = ptc_sum + (base_out - x)
        ftc_sum = ftc_sum + (tuned_out - base_out)
        ptc_norms.append(l1(ptc_sum))
        ftc_norms.append(l1(ftc_sum))
        x = tuned_out
    torch.testing.assert_close(x, last, rtol=1e-12, atol=1e-12)

    base_alone = x0
    for base_layer, base_arguments in zip(layers_of(base), base_run, strict=True):
        base_alone = call(base_layer, base_alone, base_arguments)

    betas = [share(f, p) for p, f in zip(ptc_norms, ftc_norms)]
    return {
        "token_ids": token_ids,
        "tuco": betas[-1],
        "ptc_l1": ptc_norms[-1],
        "ftc_l1": ftc_norms[-1],
        "beta": max(betas),
        "beta_per_layer": betas,
        "ptc_l1_per_layer": ptc_norms,
        "ftc_l1_per_layer": ftc_norms,
        "output_co": share(l1(x - base_alone), l1(base_alone)),
        "last_hidden_l1": l1(x),
        "logits_top": logits[:8].tolist(),
    }


def prompts_of(name, case):
    rng = random.Random(name)
    vocab = case.shape["vocab_size"] + case.extra_tokens
    prompts = [[rng.randrange(vocab) for _ in range(length)] for length in case.lengths]
    if case.extra_tokens:
        prompts[1][-1] = vocab - 1  # the last token scored, then one further back, is of the tail
        prompts[2][3] = vocab - 2
    return prompts


# -------------------------------------------------------------------------------------------------------------- precision


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


def angles_in_float64(self, x, position_ids):
    """The rotary table from the float32 frequencies transformers gives, but angle, cosine and sine in float64."""
    LlamaRotaryEmbedding.stock_forward(self, x, position_ids)  # lets the dynamic kind set its frequencies
    angle = position_ids[..., None].double() * self.inv_freq.double()
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling


def everything_float64_but_angles(model):
    stack = contextlib.ExitStack()
    for norm in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
        stack.enter_context(mock.patch.object(norm, "forward", norm_in_input_dtype))
    for router in {type(module) for module in model.modules() if type(module).__name__.endswith("TopKRouter")}:
        stack.enter_context(mock.patch.object(router, "forward", router_in_input_dtype))
    modeling = sys.modules[type(model).__module__]
    stack.enter_context(mock.patch.object(modeling, "eager_attention_forward", attention_in_input_dtype))
    return stack


def everything_float64(model):
    stack = everything_float64_but_angles(model)
    LlamaRotaryEmbedding.stock_forward = LlamaRotaryEmbedding.forward
    stack.enter_context(mock.patch.object(LlamaRotaryEmbedding, "forward", angles_in_float64))
    return stack


def gold(name, case, precision=everything_float64_but_angles):
    base, tuned = load_pair(name, case)
    with precision(tuned):
        return [measure(base, tuned, token_ids) for token_ids in prompts_of(name, case)]


def largest_change(some, others, keys):
    changes = [abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(some, others) for key in keys if b[key]]
    return max(changes)


def compare():
    keys = "tuco ptc_l1 ftc_l1 beta output_co last_hidden_l1".split()
    print(f"{'case':22} {'TuCo from':>10} {'to':>8} {'stock: tuco':>12} {'any':>8} {'f64 angles: tuco':>17} {'any':>8}")
    for name, case in CASES.items():
        wanted = gold(name, case)
        stock = gold(name, case, lambda _: contextlib.nullcontext())
        full = gold(name, case, everything_float64)
        tucos = [prompt["tuco"] for prompt in wanted]
        print(
            f"{name:22} {min(tucos):10.5f} {max(tucos):8.5f} {largest_change(stock, wanted, ['tuco']):12.1e} "
            f"{largest_change(stock, wanted, keys):8.1e} {largest_change(full, wanted, ['tuco']):17.1e} "
            f"{largest_change(full, wanted, keys):8.1e}"
        )


# ------------------------------------------------------------------------------------------------------------------- main


def write_case(name, case):
    make_checkpoints(name, case)
    values = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": gold(name, case),
    }
    (HERE / name / "gold.json").write_text(json.dumps(values, indent=1) + "\n")
    tucos = [prompt["tuco"] for prompt in values["prompts"]]
    print(f"{name:22} TuCo {min(tucos):.5f} to {max(tucos):.5f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these cases; default: all")
    parser.add_argument("--compare", action="store_true", help="print how far other precisions move the values")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if arguments.compare:
        compare()
        return
    for name in arguments.cases or CASES:
        write_case(name, CASES[name])


if __name__ == "__main__":
    main()
