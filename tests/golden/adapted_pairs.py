"""Golden pairs with adapters. In `peft` the entries of B begin as zeros; here every part is random, of the strength `noise`."""

from cases import Case, shape
from transformers import (
    Ernie4_5Config,
    Gemma2Config,
    GlmConfig,
    GPT2Config,
    GptOssConfig,
    MixtralConfig,
    Phi3Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

ADAPTED = {
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
    # The rows of queries and keys are stored in another order, those of the adapter too.
    "lora_interleaved": Case(
        shape(32, 4, 2, 41, 2, 67, head_dim=12, pad_token_id=0, eos_token_id=[2]),
        0.1,
        GlmConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        adapter=dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "o_proj"]),
    ),
    "lora_interleaved_dora": Case(
        shape(30, 5, 1, 41, 2, 71, head_dim=12, use_bias=True),
        0.1,
        Ernie4_5Config,
        adapter=dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "o_proj"], use_dora=True, bias="lora_only"),
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
    # Tokens were added: the adapter saves embedding and unembedding.
    "lora_extra_tokens": Case(
        shape(32, 4, 2, 41, 2, 67, tie_word_embeddings=True), 0.1, extra_tokens=3, adapter=dict(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"])
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
    "lora_pytorch": Case(
        shape(32, 4, 2, 41, 2, 67), 0.1, adapter=dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"]), pickled=True
    ),
    "lora_mxfp4": Case(
        shape(32, 4, 2, 64, 2, 61, head_dim=10, num_local_experts=4, num_experts_per_tok=2),
        0.1,
        GptOssConfig,
        base_quantized="mxfp4",
        adapter=dict(
            r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ),
}
