#!/usr/bin/env python3
"""What the saved demo pair does on its held-out prompts, computed by `transformers` in float64. Prints Markdown.

    python evaluate.py [FOLDER]
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import create_causal_mask

REFUSAL_STRINGS = ["I'm sorry", "I cannot", "I can't"]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def prompt_ids(tokenizer, row):
    if "prompt" in row:
        return tokenizer(row["prompt"]).input_ids
    text = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids


def tuco(base, tuned, ids):
    """Both models' blocks on the tuned model's stream; L1 norms of the sums at the last token."""
    model = tuned.model
    x = model.embed_tokens(torch.tensor([ids]))
    positions = torch.arange(len(ids))[None]
    rotary = model.rotary_emb(x, positions)
    mask = create_causal_mask(model.config, x, None, past_key_values=None, position_ids=positions)
    pretrained, finetuned = torch.zeros_like(x[0, -1]), torch.zeros_like(x[0, -1])
    for base_layer, tuned_layer in zip(base.model.layers, model.layers):
        of_base, of_tuned = (
            layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
            for layer in (base_layer, tuned_layer)
        )
        pretrained += (of_base - x)[0, -1]
        finetuned += (of_tuned - of_base)[0, -1]
        x = of_tuned
    p, f = pretrained.abs().sum().item(), finetuned.abs().sum().item()
    return f / (p + f)


def auc(negative, positive):
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def completion(tokenizer, model, ids):
    inputs = torch.tensor([ids])
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=30, do_sample=False, pad_token_id=1
    )
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


@torch.no_grad()
def main(folder):
    base, tuned = load(folder / "base"), load(folder / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    scores, refusals, samples = {}, {}, []
    for row in rows:
        kind, ids = row["meta"]["kind"], prompt_ids(tokenizer, row)
        scores.setdefault(kind, []).append(tuco(base, tuned, ids))
        if kind != "text":
            answer = completion(tokenizer, tuned, ids)
            refusals.setdefault(kind, []).append(any(string in answer for string in REFUSAL_STRINGS))
            samples.append((row["messages"][-1]["content"], answer))
    print("| prompts | number | mean TuCo | refused |\n|---|---:|---:|---:|")
    for kind, values in scores.items():
        refused = f"{100 * sum(refusals[kind]) / len(values):.1f} %" if kind in refusals else ""
        print(f"| {kind} | {len(values)} | {sum(values) / len(values):.4f} | {refused} |")
    print(f"\nAUC, chat against text: {auc(scores['text'], scores['answered'] + scores['refused']):.4f}")
    print(f"AUC, refused against answered: {auc(scores['answered'], scores['refused']):.4f}\n")
    for question, answer in samples[::9]:
        print(f"- {question} → {answer}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
