"""What a golden pair is made of, and the prompts that are run on it."""

import pathlib
import random
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig

HERE = pathlib.Path(__file__).resolve().parent
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass
class Case:
    """One pair. `shape` are fields of `config`, shared by both sides unless a field below says otherwise."""

    shape: dict
    noise: float  # tuned = base + noise * (spread of the tensor) * N(0, 1)
    config: type = LlamaConfig
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    tuned_rope: dict | None = None
    tuned_shape: dict = field(default_factory=dict)  # fields that are others on the tuned side
    base_dtype: torch.dtype = BF16
    tuned_dtype: torch.dtype = BF16
    norms_in_f32: bool = False
    base_form: str = "v5"  # how config.json is written, see `as_transformers_4`
    tuned_form: str = "v5"
    base_shard: str | None = None  # `max_shard_size` of save_pretrained
    tuned_shard: str | None = None
    extra_tokens: int = 0  # rows the tuned vocabulary has beyond the base's
    shared: tuple = ()  # tensors whose name contains one of these keep their base bits
    adapter: dict | None = None  # fields of `LoraConfig`; without `tuned_too` the adapter is all that tuning did
    base_adapter: dict | None = None
    tuned_too: bool = False
    base_quantized: dict | str | None = None  # types of GGUF tensors, or a kind of FP8 or MXFP4: see quantized.py
    tuned_quantized: dict | str | None = None
    pickled: bool = False  # as `torch.save` writes them, the tuned side in two files
    with_images: bool = False  # saved as the text part of a model for text and images
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


def config_of(case, side):
    rope = case.tuned_rope if side == "tuned" and case.tuned_rope else case.rope
    fields = case.shape | ({"rope_parameters": dict(rope)} if rope else {})
    if side == "tuned":
        fields |= case.tuned_shape
        fields["vocab_size"] += case.extra_tokens
    return case.config(**fields)


def prompts_of(name, case):
    rng = random.Random(name)
    vocab = case.shape["vocab_size"] + case.extra_tokens
    prompts = [[rng.randrange(vocab) for _ in range(length)] for length in case.lengths]
    if case.extra_tokens:
        prompts[1][-1] = vocab - 1  # the last token scored, then one further back, is of the tail
        prompts[2][3] = vocab - 2
    return prompts
