#!/usr/bin/env python3
"""What it costs to round the context to bfloat16, by hidden size and size of the fine-tune: pairs of Llama's shapes with random weights and a few
dimensions that stand out, scored with the context in bfloat16 and, in float32 and float64, on the CPU (within 3e-6 of float64). Needs torch and transformers.

    cargo build --release --features sim
    python benches/context_precision.py --tuco target/release/tuco --device sim
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTHS, RANK = 512, (24, 40, 33, 57), 16
# The tuned model is base + s · (tuned − base).
SIZES = (1.0, 0.3, 0.1, 0.03, 0.003)


def models(hidden_size, layers):
    """A model with the base's weights, and by their names these and what fine-tuning adds to them."""
    heads = hidden_size // 64
    config = LlamaConfig(
        hidden_size=hidden_size, intermediate_size=hidden_size * 11 // 4, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 4, vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    base, added = {}, {}
    for name, weight in model.state_dict().items():
        if "norm" in name:
            weight = 1 + 0.3 * torch.randn_like(weight)
        elif "embed" in name:
            weight = 0.5 * torch.randn_like(weight)
            weight[:, [3, 77]] *= 20
        else:
            weight = 1.2 * torch.randn_like(weight) / weight.shape[1] ** 0.5
        base[name] = weight.to(torch.bfloat16).float()
        if "layers" in name and weight.dim() == 2:
            low_rank = torch.randn(weight.shape[0], RANK) @ torch.randn(RANK, weight.shape[1])
            added[name] = low_rank * (0.3 * weight.norm() / low_rank.norm())
    return model, base, added


def save(model, weights, path):
    model.load_state_dict(weights)
    model.to(torch.bfloat16).save_pretrained(path)
    model.float()


def scores(tuco, flags, base, tuned, prompts):
    command = [tuco, "score", "-q", *flags, "--base", base, "--tuned", tuned, prompts]
    # Layers are larger than the memory that the simulator has by itself.
    environment = os.environ | {"TUCO_SIM_MEMORY": str(16 << 30)}
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()
    return [json.loads(line)["tuco"] for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuco", default="target/release/tuco")
    parser.add_argument("--device", default="cuda", help="cuda, or sim of a program built with the simulator")
    parser.add_argument("--hidden-sizes", default="1024,2048,4096")
    parser.add_argument("--layers", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| hidden size | s | TuCo | largest relative error |\n|---:|---:|---:|---:|", flush=True)
    for hidden_size in map(int, args.hidden_sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            base, tuned, prompts = (str(pathlib.Path(folder) / name) for name in ("base", "tuned", "prompts.jsonl"))
            rows = [{"token_ids": torch.randint(VOCABULARY, (length,)).tolist()} for length in LENGTHS]
            pathlib.Path(prompts).write_text("".join(json.dumps(row) + "\n" for row in rows))
            model, weights, added = models(hidden_size, args.layers)
            save(model, weights, base)
            for size in SIZES:
                save(model, {name: weight + size * added.get(name, 0) for name, weight in weights.items()}, tuned)
                exact = scores(args.tuco, ["--device", "cpu"], base, tuned, prompts)
                found = scores(args.tuco, ["--device", args.device, "--context-precision", "bfloat16"], base, tuned, prompts)
                error = max(abs(f / e - 1) for f, e in zip(found, exact))
                print(f"| {hidden_size} | {size} | {min(exact):.4f} to {max(exact):.4f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
