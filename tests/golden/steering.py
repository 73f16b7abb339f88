#!/usr/bin/env python3
"""Write `steering.json`: what `tuco` must find on the golden pairs when it steers and traces.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 peft==0.21.2   # as for generate.py
    python tests/golden/steering.py

`generate.py` must have made the pairs. Models, precision (float64, eager, RMSNorm and softmax in float64) and prompts are its own.

Steering: the tuned model runs with a hook on each of its layers, which gets what `transformers` gives the layer and replaces the
layer's output by `x + ptc + alpha * ftc`, `ptc = base_layer(x) - x`, `ftc = tuned_layer(x) - base_layer(x)`. Kept are the first
logits of the last token and the largest magnitude of all of them. For alpha 1 they must be the tuned model's own.

Tracing (alpha 1): TuCo of every token, from its own running sums; and, where attention and MLP follow each other, the shares of
both parts in the sums of the last token.
"""

import json
import pathlib

import torch
import transformers
from cases import HERE, prompts_of
from models import call, everything_float64_but_angles, layers_of, load_pair, run
from table import CASES

ALPHAS = (0.0, 0.6, 1.0, 1.3)
LOGITS = 5


def digits(value):
    """Enough of a float64 for a comparison to 1e-9."""
    return float(f"{value:.11g}")


@torch.no_grad()
def steered(base, tuned, base_arguments, ids, alpha):
    hooks = []
    for index, (base_layer, tuned_layer) in enumerate(zip(layers_of(base), layers_of(tuned), strict=True)):

        def mix(_, args, kwargs, output, base_layer=base_layer, index=index):
            x = args[0] if args else kwargs["hidden_states"]
            tuned_out = output[0] if isinstance(output, tuple) else output
            base_out = call(base_layer, x, base_arguments[index])
            mixed = x + (base_out - x) + alpha * (tuned_out - base_out)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        hooks.append(tuned_layer.register_forward_hook(mix, with_kwargs=True))
    _, _, logits = run(tuned, ids)
    for hook in hooks:
        hook.remove()
    return logits


@torch.no_grad()
def traced(base, tuned, base_arguments, ids):
    """TuCo of every token after the last layer."""
    arguments, _, _ = run(tuned, ids)
    p = f = 0
    for base_layer, base_args, tuned_layer, tuned_args in zip(layers_of(base), base_arguments, layers_of(tuned), arguments, strict=True):
        x = tuned_args[0][0]
        base_out, tuned_out = call(base_layer, x, base_args), call(tuned_layer, x, tuned_args)
        p, f = p + base_out - x, f + tuned_out - base_out
    p, f = p.abs().sum(-1)[0], f.abs().sum(-1)[0]
    return (f / (p + f)).nan_to_num(0.0)


@torch.no_grad()
def measure(_, base, tuned, token_ids):
    ids = torch.tensor([token_ids])
    base_arguments, _, _ = run(base, torch.zeros_like(ids))
    _, _, own = run(tuned, ids)
    alphas = {}
    for alpha in ALPHAS:
        logits = steered(base, tuned, base_arguments, ids, alpha)
        if alpha == 1.0:
            torch.testing.assert_close(logits, own, rtol=1e-10, atol=1e-10)
        alphas[str(alpha)] = {
            "largest": digits(logits.abs().max().item()),
            "logits": [digits(value) for value in logits[:LOGITS].tolist()],
        }
    tuco = [digits(value) for value in traced(base, tuned, base_arguments, ids).tolist()]
    return {"token_ids": token_ids, "alphas": alphas, "tuco_per_token": tuco}


def write(file_name, measure):
    """What `measure(name, base, tuned, token_ids)` finds of a short and a longer prompt of every case, with the versions."""
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    cases = {}
    for name, case in CASES.items():
        base, tuned = load_pair(name, case)
        with everything_float64_but_angles(tuned):
            prompts = sorted(prompts_of(name, case), key=len)
            cases[name] = [measure(name, base, tuned, token_ids) for token_ids in (prompts[2], prompts[3])]
        print(name)
    lines = [f"{json.dumps(name)}: {json.dumps(prompts)}" for name, prompts in cases.items()]
    values = {"transformers": transformers.__version__, "torch": torch.__version__}
    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    (HERE / file_name).write_text("{\n" + head + ',\n"cases": {\n' + ",\n".join(lines) + "\n}\n}\n")


if __name__ == "__main__":
    write("steering.json", measure)
