#!/usr/bin/env python3
"""Tuning Contribution with `transformers`, written as a competent user would: what `tuco score` is measured against.

    pip install torch transformers
    python benches/transformers_peer.py --base DIR --tuned DIR PROMPTS.jsonl -o OUT.jsonl --threads 2 --dtype float32

Both models are loaded once, without an lm_head; prompts are sorted by length and batched with right padding up to a budget of
tokens; attention is SDPA; a hook on each layer of the tuned model runs the base's layer on the same input. PROMPTS.jsonl has
lines {"id", "token_ids"}, OUT.jsonl gets lines {"id", "tuco", "ptc_l1", "ftc_l1", "n_tokens"}; a line of JSON with the times
goes to stderr.
"""

import argparse
import json
import sys
import time

STARTED = time.perf_counter()

import torch  # noqa: E402  (the clock starts before the imports)
import transformers  # noqa: E402
from transformers import AutoModel  # noqa: E402

# Padded tokens in a batch. Of 1, 512, 1024, 2048 and 4096 the fastest on 2 cores with a 135M pair (4096 is some 15 % slower:
# activations leave the caches). float32 is faster than bfloat16 there, 440 against 270 tokens/s at best.
DEFAULT_BATCH_TOKENS = 1024


def load(folder, dtype):
    return AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


class Contributions:
    """Sums PTC and FTC of the last tokens over the layers, from hooks on the tuned model's layers."""

    def __init__(self, base, tuned):
        if base.config.rope_parameters != tuned.config.rope_parameters:
            raise SystemExit("this script hands the tuned model's rotary table to the base: both must be the same")
        for base_layer, tuned_layer in zip(base.layers, tuned.layers, strict=True):
            tuned_layer.register_forward_hook(self.hook_for(base_layer), with_kwargs=True)

    def start_batch(self, last):
        self.rows = torch.arange(len(last)), last
        self.ptc = self.ftc = 0.0

    def hook_for(self, base_layer):
        def hook(_module, args, kwargs, tuned_out):
            base_out = base_layer(*args, **kwargs)
            x, base_row, tuned_row = (hidden[self.rows].float() for hidden in (args[0], base_out, tuned_out))
            self.ptc = self.ptc + (base_row - x)
            self.ftc = self.ftc + (tuned_row - base_row)

        return hook

    def norms(self):
        return [part.double().abs().sum(dim=1).tolist() for part in (self.ptc, self.ftc)]


def batches(prompts, budget):
    """Lists of prompts of similar length whose padded size stays within the budget, the longest first."""
    batch = []
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt["token_ids"])):
        longest = len(batch[0]["token_ids"]) if batch else 0
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def padded(batch):
    lengths = torch.tensor([len(prompt["token_ids"]) for prompt in batch])
    ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
    for row, prompt in zip(ids, batch):
        row[: len(prompt["token_ids"])] = torch.tensor(prompt["token_ids"])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return ids, mask.long(), lengths - 1


def score(tuned, contributions, batch):
    ids, mask, last = padded(batch)
    contributions.start_batch(last)
    # Without padding no mask is needed, and SDPA may use its causal kernel.
    tuned(ids, attention_mask=None if mask.all() else mask, use_cache=False)
    for prompt, ptc, ftc in zip(batch, *contributions.norms()):
        tuco = ftc / (ptc + ftc) if ftc else 0.0
        yield {"id": prompt["id"], "tuco": tuco, "ptc_l1": ptc, "ftc_l1": ftc, "n_tokens": len(prompt["token_ids"])}


@torch.inference_mode()
def score_all(base, tuned, prompts, budget):
    contributions = Contributions(base, tuned)
    rows = {}
    for batch in batches(prompts, budget):
        for row in score(tuned, contributions, batch):
            rows[row["id"]] = row
    return [rows[prompt["id"]] for prompt in prompts]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-tokens", type=int, default=DEFAULT_BATCH_TOKENS)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, arguments.dtype)
    base, tuned = load(arguments.base, dtype), load(arguments.tuned, dtype)
    with open(arguments.prompts, encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines]
    loaded = time.perf_counter()
    rows = score_all(base, tuned, prompts, arguments.batch_tokens)
    scored = time.perf_counter()
    with open(arguments.output, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    tokens = sum(row["n_tokens"] for row in rows)
    times = {
        "load_seconds": loaded - STARTED,
        "steady_seconds": scored - loaded,
        "tokens": tokens,
        "tokens_per_second": tokens / (scored - loaded),
    }
    print(json.dumps(times), file=sys.stderr)


if __name__ == "__main__":
    main()
