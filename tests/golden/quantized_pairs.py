"""Golden pairs of quantized checkpoints."""

from cases import BF16, F16, Case, shape
from llama_pairs import LLAMA3
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    GraniteConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

QUANTIZED = {
    # FP8: blocks that do not divide the matrices, fused tensors, experts.
    "fp8_blocks": Case(shape(36, 4, 2, 45, 2, 67, head_dim=10), 0.1, Qwen3Config, base_quantized="block", tuned_quantized="block"),
    "fp8_tensor": Case(
        shape(32, 4, 4, 41, 2, 67, pad_token_id=0), 0.1, Phi3Config, base_quantized="tensor", tuned_quantized="tensor", base_form="v4"
    ),
    "fp8_row": Case(
        shape(24, 4, 2, 21, 2, 61, num_local_experts=5, num_experts_per_tok=2), 0.1, MixtralConfig, base_quantized="row", tuned_quantized="row"
    ),
    # A fine-tune of the packed experts, unpacked, as people have it.
    "mxfp4": Case(
        shape(64, 4, 2, 32, 2, 61, head_dim=16, num_local_experts=4, num_experts_per_tok=3, sliding_window=7),
        0.1,
        GptOssConfig,
        base_quantized="mxfp4",
    ),
    "mxfp4_both": Case(
        shape(32, 2, 1, 96, 2, 61, head_dim=16, num_local_experts=3, num_experts_per_tok=1, sliding_window=7),
        0.1,
        GptOssConfig,
        base_quantized="mxfp4",
        tuned_quantized="mxfp4_flat",
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
        rope=LLAMA3,
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
