#!/usr/bin/env python3
"""Write `generation.json`: the greedy completions that `tuco` must find on the golden pairs, and the TuCo of their tokens.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 peft==0.21.2   # as for generate.py
    python tests/golden/generation.py

`generate.py` must have made the pairs. Models, precision (float64, eager, RMSNorm and softmax in float64) and prompts are its own.

Each completion is made token by token from the whole sequence, steered as in `steering.py`. For alpha 1 `transformers`' own
`generate` on the tuned model, with its cache, must give the same tokens; the cases in `OTHER_CACHE` are let off, where it keeps
keys that were rotated for a shorter sequence. A completion ends early where the two largest logits are too close to be told
apart in float32.

TuCo of a token (at alpha 1) is that of the hidden state that it was chosen from.
"""

import torch
from models import run
from steering import digits, steered, traced, write

ALPHAS = (0.0, 0.6, 1.0, 1.3)
NEW_TOKENS = 12
CLOSE = 1e-4
OTHER_CACHE = {"rope_dynamic", "phi3_longrope"}


@torch.no_grad()
def completed(base, tuned, prompt, alpha):
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        tokens = torch.tensor([ids])
        base_arguments, _, _ = run(base, torch.zeros_like(tokens))
        logits = steered(base, tuned, base_arguments, tokens, alpha)
        first, second = logits.topk(2).values.tolist()
        if (first - second) / logits.abs().max().item() < CLOSE:
            break
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def last_tuco(base, tuned, token_ids):
    ids = torch.tensor([token_ids])
    base_arguments, _, _ = run(base, torch.zeros_like(ids))
    return traced(base, tuned, base_arguments, ids)[-1].item()


@torch.no_grad()
def measure(name, base, tuned, prompt):
    completions = {str(alpha): completed(base, tuned, prompt, alpha) for alpha in ALPHAS}
    own = completions["1.0"]
    ids = torch.tensor([prompt])
    options = dict(max_new_tokens=max(len(own), 1), do_sample=False, eos_token_id=None, pad_token_id=0)
    generated = tuned.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()[: len(own)]
    if generated != own:
        print(f"{name}: generate says {generated}, steering {own}")
        assert name in OTHER_CACHE, name
    tuco = [last_tuco(base, tuned, [*prompt, *own[:count]]) for count in range(len(own))]
    return {"token_ids": prompt, "completions": completions, "tuco": [digits(value) for value in tuco]}


if __name__ == "__main__":
    write("generation.json", measure)
