"""Golden pairs of the other families. Windows are shorter than most of the prompts."""

from cases import F16, F32, Case, shape
from llama_pairs import LLAMA3
from transformers import (
    ApertusConfig,
    ArceeConfig,
    CwmConfig,
    Ernie4_5Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    IQuestCoderConfig,
    Jais2Config,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

FAMILIES = {
    "mistral": Case(shape(32, 4, 2, 41, 3, 67, head_dim=12, sliding_window=9), 0.1, MistralConfig, base_form="v4"),
    "mistral_no_window": Case(shape(24, 4, 4, 33, 2, 63, sliding_window=None), 0.1, MistralConfig, tuned_form="v4"),
    "ministral": Case(
        shape(32, 4, 2, 41, 3, 67, head_dim=8, sliding_window=9, layer_types=["full_attention", "sliding_attention", "full_attention"]),
        0.1,
        MinistralConfig,
    ),
    # Each block runs with its model's numbers, also where the weights are the same (layer 1).
    "mistral_differs": Case(
        shape(32, 4, 2, 41, 3, 67, sliding_window=9),
        0.1,
        MistralConfig,
        tuned_shape=dict(sliding_window=14, rms_norm_eps=3e-2),
        shared=("layers.1.",),
    ),
    "gemma": Case(shape(30, 3, 1, 41, 2, 71, head_dim=16, hidden_act="gelu_pytorch_tanh"), 0.1, GemmaConfig, base_form="v4"),
    "gemma2": Case(
        shape(32, 4, 2, 37, 3, 69, head_dim=10, sliding_window=11, query_pre_attn_scalar=24, attn_logit_softcapping=15.0),
        0.1,
        Gemma2Config,
        base_form="v4",
    ),
    "gemma2_differs": Case(
        shape(32, 4, 2, 37, 3, 69, head_dim=10, sliding_window=11, query_pre_attn_scalar=24, attn_logit_softcapping=15.0),
        0.1,
        Gemma2Config,
        tuned_shape=dict(query_pre_attn_scalar=12, attn_logit_softcapping=5.0),
        shared=("layers.1.",),
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
        # Patterns are of the whole model's names.
        adapter=dict(
            r=2, lora_alpha=2, target_modules="all-linear", alpha_pattern={"model.language_model.layers.0.self_attn.q_proj": 14},
            rank_pattern={"^model.language_model.layers.1.mlp.up_proj": 3},
        ),
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
    # Two forms of models for text and images: with a part for text, and all in one.
    "qwen2_5_vl": Case(
        shape(32, 4, 2, 43, 2, 75, tie_word_embeddings=True),
        0.1,
        Qwen2Config,
        with_images=True,
        tuned_form="flat",
    ),
    "qwen3_vl": Case(shape(30, 5, 1, 41, 2, 71, head_dim=12), 0.1, Qwen3Config, with_images=True),
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
    "granite_differs": Case(
        shape(32, 4, 2, 41, 3, 71, embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2),
        0.1,
        GraniteConfig,
        tuned_shape=dict(residual_multiplier=0.4, attention_multiplier=0.3),
        shared=("layers.1.",),
    ),
    "olmo": Case(shape(32, 4, 2, 41, 2, 71), 0.1, OlmoConfig, base_form="v4"),
    # Only the fourth layer has no window, and stretched angles.
    "olmo3": Case(
        shape(32, 4, 2, 41, 5, 67, sliding_window=9),
        0.1,
        Olmo3Config,
        rope={
            "full_attention": {
                "rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.2,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
        base_form="v4",
    ),
    "olmoe": Case(shape(24, 4, 2, 21, 2, 61, num_experts=6, num_experts_per_tok=3), 0.1, OlmoeConfig, base_form="v4"),
    # All prompts are shorter than the original length: from there on queries would grow.
    "ministral3": Case(
        shape(32, 4, 2, 41, 2, 67, head_dim=12),
        0.1,
        Ministral3Config,
        rope={
            "rope_type": "yarn", "rope_theta": 200.0, "factor": 2.0, "original_max_position_embeddings": 66, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        },
    ),
    "mistral3_with_images": Case(shape(24, 4, 2, 33, 2, 63, sliding_window=None), 0.1, MistralConfig, with_images=True),
    "seed_oss": Case(shape(30, 5, 1, 41, 2, 71, head_dim=12, attention_out_bias=True), 0.1, SeedOssConfig, base_form="v4"),
    "arcee": Case(shape(32, 4, 2, 41, 2, 67), 0.1, ArceeConfig, base_form="v4"),
    "apertus": Case(shape(32, 4, 2, 41, 2, 67, attention_bias=True), 0.1, ApertusConfig, rope=LLAMA3, base_form="v4"),
    "nemotron": Case(
        shape(32, 4, 2, 41, 2, 67, norm_eps=1e-4, attention_bias=True, mlp_bias=True),
        0.1,
        NemotronConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        base_form="v4",
    ),
    "starcoder2": Case(shape(32, 4, 1, 41, 2, 67, norm_epsilon=1e-4, sliding_window=11), 0.1, Starcoder2Config, base_form="v4"),
    "stablelm": Case(
        shape(32, 4, 2, 41, 2, 67, layer_norm_eps=1e-4, use_qkv_bias=True),
        0.1,
        StableLmConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        base_form="v4",
    ),
    "stablelm_parallel": Case(
        shape(32, 4, 2, 41, 2, 67, use_parallel_residual=True),
        0.1,
        StableLmConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "ernie4_5": Case(shape(30, 5, 1, 41, 2, 71, head_dim=12, use_bias=True), 0.1, Ernie4_5Config, base_form="v4"),
    "glm": Case(
        shape(32, 4, 2, 41, 2, 67, head_dim=12, pad_token_id=0, eos_token_id=[2]),
        0.1,
        GlmConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        base_form="v4",
    ),
    "glm4": Case(
        shape(32, 4, 2, 41, 2, 67, head_dim=12, pad_token_id=0, eos_token_id=[2], attention_bias=False),
        0.1,
        Glm4Config,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
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
    # One expert takes every token; the second layer has one MLP.
    "qwen2_moe": Case(
        shape(
            24, 4, 2, 29, 3, 61, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=13, shared_expert_intermediate_size=17,
            mlp_only_layers=[1],
        ),
        0.1,
        Qwen2MoeConfig,
        base_form="v4",
    ),
    "qwen3_moe_differs": Case(
        shape(24, 4, 2, 29, 3, 61, head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=13),
        0.1,
        Qwen3MoeConfig,
        tuned_shape=dict(norm_topk_prob=True),
        shared=("layers.1.",),
    ),
    # Windows, sinks, experts of one tensor; gates and what goes through them reach the limit.
    "gpt_oss": Case(
        shape(24, 4, 2, 21, 3, 61, head_dim=10, num_local_experts=5, num_experts_per_tok=2, sliding_window=9, swiglu_limit=0.7),
        0.1,
        GptOssConfig,
        rope={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
        tuned_shape=dict(swiglu_limit=0.9),
        base_form="v4",
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
    "gpt_bigcode": Case(
        dict(n_embd=32, n_head=4, n_layer=2, n_inner=41, n_positions=70, vocab_size=67, bos_token_id=1, eos_token_id=2),
        0.1,
        GPTBigCodeConfig,
        rope=None,
    ),
    "gpt_bigcode_mha": Case(
        dict(n_embd=32, n_head=4, n_layer=2, n_positions=70, vocab_size=67, bos_token_id=1, eos_token_id=2, multi_query=False),
        0.1,
        GPTBigCodeConfig,
        rope=None,
    ),
    "gpt_neo": Case(
        dict(
            hidden_size=32, num_heads=4, num_layers=3, intermediate_size=41, max_position_embeddings=70, vocab_size=67, bos_token_id=1,
            eos_token_id=2, window_size=9, attention_types=[[["global", "local"], 1], [["local"], 1]],
        ),
        0.1,
        GPTNeoConfig,
        rope=None,
    ),
    "gptj": Case(
        dict(n_embd=40, n_head=4, n_layer=2, n_inner=41, n_positions=70, vocab_size=67, bos_token_id=1, eos_token_id=2, rotary_dim=6),
        0.1,
        GPTJConfig,
        rope=None,
    ),
    "opt": Case(
        dict(
            hidden_size=32, num_attention_heads=4, ffn_dim=41, num_hidden_layers=2, vocab_size=67, max_position_embeddings=66,
            word_embed_proj_dim=32,
        ),
        0.1,
        OPTConfig,
        rope=None,
    ),
    "falcon": Case(
        dict(hidden_size=30, num_attention_heads=5, num_hidden_layers=2, vocab_size=67, layer_norm_epsilon=1e-4),
        0.1,
        FalconConfig,
        base_form="v4",
    ),
    "falcon_40b": Case(
        dict(
            hidden_size=32, num_attention_heads=4, num_kv_heads=2, ffn_hidden_size=41, num_hidden_layers=2, vocab_size=67,
            new_decoder_architecture=True, num_ln_in_parallel_attn=2, bias=True,
        ),
        0.1,
        FalconConfig,
    ),
    "falcon2": Case(
        dict(
            hidden_size=48, num_attention_heads=6, num_kv_heads=2, ffn_hidden_size=41, num_hidden_layers=2, vocab_size=67,
            new_decoder_architecture=True, num_ln_in_parallel_attn=1,
        ),
        0.1,
        FalconConfig,
        rope={"rope_type": "default", "rope_theta": 500042.0},
    ),
    "phi": Case(
        shape(32, 4, 2, 41, 2, 67, layer_norm_eps=1e-4),
        0.1,
        PhiConfig,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        base_form="v4",
    ),
    "jais2": Case(shape(32, 4, 2, 41, 2, 67, layer_norm_eps=1e-4), 0.1, Jais2Config, base_form="v4"),
    "iquestcoder": Case(shape(32, 4, 2, 41, 2, 67, head_dim=8), 0.1, IQuestCoderConfig, base_form="v4"),
    # The first layer sees all.
    "cwm": Case(shape(32, 4, 2, 41, 5, 67, head_dim=8, sliding_window=9), 0.1, CwmConfig, rope=LLAMA3, base_form="v4"),
    "granite_moe_hybrid": Case(
        shape(
            32, 4, 2, 41, 2, 67, embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2, logits_scaling=8.0,
            shared_intermediate_size=41, num_local_experts=0, position_embedding_type="rope", mamba_n_heads=4,
            layer_types=["full_attention", "full_attention"],
        ),
        0.1,
        GraniteMoeHybridConfig,
    ),
    "granite_moe_hybrid_no_rope": Case(
        shape(
            32, 4, 2, 41, 2, 67, attention_multiplier=0.2, shared_intermediate_size=41, num_local_experts=0, mamba_n_heads=4,
            layer_types=["full_attention", "full_attention"],
        ),
        0.1,
        GraniteMoeHybridConfig,
    ),
    "smollm3": Case(shape(24, 4, 2, 33, 5, 61, pad_token_id=0), 0.1, SmolLM3Config, base_form="v4"),
    # The head is the embedding's storage.
    "pytorch": Case(shape(32, 4, 2, 41, 2, 67, tie_word_embeddings=True), 0.1, base_dtype=F16, pickled=True),
}
