#!/usr/bin/env python3
"""`tuco sweep` against a `transformers` script with hooks, on one pair and one file of questions, in one run. Prints Markdown.

    cargo build --release
    python benches/sweep_vs_transformers.py --base DIR --tuned DIR --tuco target/release/tuco QUESTIONS.jsonl --limit 60

QUESTIONS are Model-Written Evaluations. The script is written as a competent user would: both models are loaded once, prompts
are sorted by length and padded to batches of at most 1024 tokens, attention is SDPA, a hook on each layer of the tuned model
runs the base's layer on the same input and replaces the output by `base + alpha (tuned - base)`, and only the last tokens'
hidden states go through the final norm and the head, of which only the rows of the answers are taken. For alpha 1 the base is
not run. Timed are the seven passes, without start and load; tuco's time is that of its whole process.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_peer import batches, padded

ALPHAS = [0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def read_questions(path, limit, tokenizer):
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:limit]
    for index, row in enumerate(rows):
        chat = [{"role": "user", "content": row["question"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        yield {"id": index, "token_ids": ids, "label": row["answer_matching_behavior"].strip()}


@torch.inference_mode()
def peer(base, tuned, prompts, tokens):
    """Logits of the answers by alpha and prompt."""
    alpha = 1.0

    def hook_for(base_layer):
        def hook(_module, args, kwargs, tuned_out):
            if alpha == 1.0:
                return tuned_out
            base_out = base_layer(*args, **kwargs)
            return base_out + alpha * (tuned_out - base_out)

        return hook

    for base_layer, tuned_layer in zip(base.model.layers, tuned.model.layers, strict=True):
        tuned_layer.register_forward_hook(hook_for(base_layer), with_kwargs=True)
    table = {}
    for alpha in ALPHAS:
        for batch in batches(prompts, 1024):
            ids, mask, last = padded(batch)
            hidden = tuned.model(ids, attention_mask=None if mask.all() else mask, use_cache=False).last_hidden_state
            logits = hidden[torch.arange(len(batch)), last] @ tuned.lm_head.weight[tokens].T
            for prompt, row in zip(batch, logits.tolist()):
                table[alpha, prompt["id"]] = row
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions")
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--tuco", required=True)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(arguments.tuned)
    prompts = list(read_questions(arguments.questions, arguments.limit, tokenizer))
    tokens = [tokenizer.encode(answer, add_special_tokens=False)[0] for answer in ("No", "Yes")]
    base, tuned = load(arguments.base), load(arguments.tuned)

    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "sweep"
        command = [arguments.tuco, "sweep", arguments.questions, "--base", arguments.base, "--tuned", arguments.tuned]
        command += ["--apply-chat-template", "--limit", str(arguments.limit), "--threads", str(arguments.threads)]
        start = time.perf_counter()
        subprocess.run([*command, "--quiet", "-o", out], check=True, stdout=subprocess.DEVNULL)
        own = time.perf_counter() - start
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]

    start = time.perf_counter()
    theirs = peer(base, tuned, prompts, tokens)
    their_time = time.perf_counter() - start

    difference = 0.0
    for index, row in enumerate(rows):
        assert row["n_tokens"] == len(prompts[index]["token_ids"]) and row["answers"] == ["No", "Yes"], row
        for alpha, logits in zip(ALPHAS, row["logits"]):
            both = zip(logits, theirs[alpha, index])
            difference = max(difference, *(abs(a - b) / abs(b) for a, b in both))
    count = sum(len(prompt["token_ids"]) for prompt in prompts)
    print(f"{len(prompts)} questions, {count} tokens, {len(ALPHAS)} alphas, {arguments.threads} threads\n")
    print("| | seconds |\n|---|---:|")
    print(f"| tuco sweep, whole process | {own:.1f} |\n| transformers with hooks, passes alone | {their_time:.1f} |")
    print(f"\nRatio {their_time / own:.2f}; largest relative difference of a logit {difference:.1e}")


if __name__ == "__main__":
    main()
