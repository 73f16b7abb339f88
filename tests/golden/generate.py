#!/usr/bin/env python3
"""Make the golden pairs of this folder: small random models of every family and the values `tuco` must find on them.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 peft==0.21.2 gguf==0.19.0
    python tests/golden/generate.py            # writes every case again, in place (well under a minute)
    python tests/golden/generate.py lora gpt2  # only these
    python tests/golden/generate.py --compare  # writes nothing; prints how far other precisions move the values

Each case is `<case>/base`, `<case>/tuned` (checkpoints as `transformers` saves them) and `<case>/gold.json`; cases of adapters
have `<case>/adapter` (as `peft` saves it; on the base where there is no `tuned`) and perhaps `<case>/base_adapter`. Quantized
checkpoints are made, and read back as plain ones in float32, by `quantized.py`. Everything is seeded by the case's name, so a run
with the versions above rewrites the same bytes.

How the gold is computed. The stored (rounded) weights are read back by `transformers` and widened to float64; attention is
"eager"; each prompt runs alone, without padding. At every layer the base model's layer gets the tuned model's input to that
layer, with the base's own rotary table and mask (what `transformers` itself hands its layers, taken by hooks):

    ptc = base_layer(x) - x,   ftc = tuned_layer(x) - base_layer(x),   x = tuned_layer(x)

Gold values are of the last token, in L1 norms (see `measure`). `output_co` runs the base's layers on their own from the
tuned model's embedding.

Precision. `transformers` computes RMSNorm, softmax and the rotary tables in float32 even in a float64 model. `--compare` gives,
as the largest relative change of any gold number over all cases and prompts:

    against the gold written here                  TuCo      any of its norms
    stock transformers (float32 norm, softmax)     6.1e-5    6.1e-5   (light_f32; 1e-7 to 1.5e-6 where TuCo > 0.03)
    rotary angle, cos and sin in float64 as well   4.1e-7    5.1e-7   (the yarn cases; below 1e-7 elsewhere)

The first is not small, because ftc is a difference of nearly equal numbers when the fine-tune is light. So the gold uses
RMSNorm and softmax in float64 (replaced in `models.py`); only the rotary tables stay transformers' own float32 ones.
"""

import argparse
import contextlib
import json

import torch
import transformers
from cases import HERE, prompts_of
from checkpoints import make_checkpoints
from models import call, everything_float64, everything_float64_but_angles, layers_of, load_pair, run
from table import CASES


def l1(hidden):
    """L1 norm of the last token's row."""
    return hidden[0, -1].abs().sum().item()


def share(part, rest):
    return part / (rest + part) if part else 0.0


@torch.no_grad()
def measure(base, tuned, token_ids):
    ids = torch.tensor([token_ids])
    tuned_run, last, logits = run(tuned, ids)
    # Only what depends on positions is taken from the base's run, so any tokens do.
    base_run, _, _ = run(base, torch.zeros_like(ids))
    x0 = x = tuned_run[0][0][0]
    ptc_sum, ftc_sum = torch.zeros_like(x), torch.zeros_like(x)
    ptc_norms, ftc_norms = [], []
    layers = zip(layers_of(base), base_run, layers_of(tuned), tuned_run, strict=True)
    for base_layer, base_arguments, tuned_layer, tuned_arguments in layers:
        torch.testing.assert_close(x, tuned_arguments[0][0], rtol=1e-12, atol=1e-12)
        base_out = call(base_layer, x, base_arguments)
        tuned_out = call(tuned_layer, x, tuned_arguments)
        ptc_sum = ptc_sum + (base_out - x)
        ftc_sum = ftc_sum + (tuned_out - base_out)
        ptc_norms.append(l1(ptc_sum))
        ftc_norms.append(l1(ftc_sum))
        x = tuned_out
    torch.testing.assert_close(x, last, rtol=1e-12, atol=1e-12)

    base_alone = x0
    for base_layer, base_arguments in zip(layers_of(base), base_run, strict=True):
        base_alone = call(base_layer, base_alone, base_arguments)

    betas = [share(f, p) for p, f in zip(ptc_norms, ftc_norms)]
    return {
        "token_ids": token_ids,
        "tuco": betas[-1],
        "ptc_l1": ptc_norms[-1],
        "ftc_l1": ftc_norms[-1],
        "beta": max(betas),
        "beta_per_layer": betas,
        "ptc_l1_per_layer": ptc_norms,
        "ftc_l1_per_layer": ftc_norms,
        "output_co": share(l1(x - base_alone), l1(base_alone)),
        "last_hidden_l1": l1(x),
        "logits_top": logits[:8].tolist(),
    }


def gold(name, case, precision=everything_float64_but_angles):
    base, tuned = load_pair(name, case)
    with precision(tuned):
        return [measure(base, tuned, token_ids) for token_ids in prompts_of(name, case)]


def largest_change(some, others, keys):
    changes = [abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(some, others) for key in keys if b[key]]
    return max(changes)


def compare():
    keys = "tuco ptc_l1 ftc_l1 beta output_co last_hidden_l1".split()
    print(f"{'case':22} {'TuCo from':>10} {'to':>8} {'stock: tuco':>12} {'any':>8} {'f64 angles: tuco':>17} {'any':>8}")
    for name, case in CASES.items():
        wanted = gold(name, case)
        stock = gold(name, case, lambda _: contextlib.nullcontext())
        full = gold(name, case, everything_float64)
        tucos = [prompt["tuco"] for prompt in wanted]
        print(
            f"{name:22} {min(tucos):10.5f} {max(tucos):8.5f} {largest_change(stock, wanted, ['tuco']):12.1e} "
            f"{largest_change(stock, wanted, keys):8.1e} {largest_change(full, wanted, ['tuco']):17.1e} "
            f"{largest_change(full, wanted, keys):8.1e}"
        )


def write_case(name, case):
    make_checkpoints(name, case)
    values = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": gold(name, case),
    }
    (HERE / name / "gold.json").write_text(json.dumps(values, indent=1) + "\n")
    tucos = [prompt["tuco"] for prompt in values["prompts"]]
    print(f"{name:22} TuCo {min(tucos):.5f} to {max(tucos):.5f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these cases; default: all")
    parser.add_argument("--compare", action="store_true", help="print how far other precisions move the values")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if arguments.compare:
        compare()
        return
    for name in arguments.cases or CASES:
        write_case(name, CASES[name])


if __name__ == "__main__":
    main()
