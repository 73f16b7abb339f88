"""Golden pairs of Llama: forms of checkpoints, configs and rotations, weights and sizes of fine-tunes."""

from cases import F16, F32, Case, shape

# Wavelengths 6.3, 17.7, 50, 141, ... : one in the untouched band, one in the smooth band, the rest divided.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

LLAMA = {
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
        rope=LLAMA3,
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
}
