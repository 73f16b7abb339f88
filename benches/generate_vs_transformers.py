#!/usr/bin/env python3
"""`tuco generate` against `transformers`' generate on one model: seconds a decoded token, the batch's rows together.

    pip install torch==2.15.0 transformers==5.23.0
    python benches/generate_vs_transformers.py --base DIR --tuned DIR --tuco target/release/tuco

transformers runs the tuned model alone, with its KV cache, in float32 (its sdpa attention), greedily, prompts of one length so that nothing is padded.
tuco runs the pair at the alphas asked for, and once with `--tuco`. The time of a step is the difference of two runs that differ in
nothing but the number of new tokens, divided by that difference: loading and prompts drop out. Runs go by turns; told is the
median. `--cpu-time` compares CPU seconds, for machines that have other work.
"""

import argparse
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

PEER = """
import json, resource, sys, time
import torch, transformers
options = json.loads(sys.argv[1])
torch.set_num_threads(options["threads"])
transformers.utils.logging.set_verbosity_error()
model = transformers.AutoModelForCausalLM.from_pretrained(options["tuned"], dtype=torch.float32).eval()
ids = torch.tensor(options["prompts"])
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
def run(new):
    start, before = time.perf_counter(), cpu()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=0,
                             max_new_tokens=new, min_new_tokens=new)
    assert out.shape[1] == ids.shape[1] + new
    return time.perf_counter() - start, cpu() - before, out[:, ids.shape[1]:].tolist()
run(2)
short, long = run(options["short"]), run(options["long"])
print(json.dumps({"short": short[:2], "long": long[:2], "tokens": long[2]}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--base", "--tuned", "--tuco"):
        parser.add_argument(name, required=True)
    parser.add_argument("--python", default=sys.executable, help="that has torch and transformers")
    parser.add_argument("--alphas", default="1,1.25,0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--short", type=int, default=8)
    parser.add_argument("--long", type=int, default=72)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    vocab_size = json.loads((pathlib.Path(options.tuned) / "config.json").read_text())["vocab_size"]
    source = random.Random(0)
    prompts = [[source.randrange(100, vocab_size) for _ in range(options.prompt_tokens)] for _ in range(options.batch)]
    which = 1 if options.cpu_time else 0

    def transformers():
        request = dict(tuned=options.tuned, prompts=prompts, threads=options.threads, short=options.short, long=options.long)
        done = subprocess.run([options.python, "-c", PEER, json.dumps(request)], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        return found["long"][which] - found["short"][which], found["tokens"]

    def tuco(flags):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "prompts.jsonl"
            path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in prompts))

            def run(new):
                command = [options.tuco, "generate", "--base", options.base, "--tuned", options.tuned, "--quiet", "--ignore-eos"]
                command += ["--device", "cpu", "--threads", str(options.threads), "--max-new-tokens", str(new), *flags, str(path)]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds = time.perf_counter() - start
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                tokens = [json.loads(row)["completions"][0]["token_ids"] for row in done.stdout.splitlines()]
                return (seconds, cpu)[which], tokens

            short, _ = run(options.short)
            long, tokens = run(options.long)
            return long - short, tokens

    rows = {"transformers, one model": transformers}
    for alpha in options.alphas.split(","):
        rows[f"tuco, alpha {alpha}"] = lambda alpha=alpha: tuco(["--alpha", alpha])
    rows["tuco, alpha 1, --tuco"] = lambda: tuco(["--tuco"])
    times, tokens = {name: [] for name in rows}, {}
    for _ in range(options.repeat):
        for name, run in rows.items():
            seconds, tokens[name] = run()
            times[name].append(1000 * seconds / (options.long - options.short))
    peer = statistics.median(times["transformers, one model"])
    what = "CPU ms" if options.cpu_time else "ms"
    print(f"Batch {options.batch}, prompts of {options.prompt_tokens} tokens, steps {options.short} to {options.long}, {options.threads} threads\n")
    print(f"| | {what} a step (range) | against transformers |\n|---|---|---:|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median / peer:.2f} |")
    if "tuco, alpha 1" in tokens:
        pairs = zip(sum(tokens["transformers, one model"], []), sum(tokens["tuco, alpha 1"], []))
        same = [a == b for a, b in pairs]
        print(f"\nSame tokens at alpha 1: {sum(same)} of {len(same)}")


if __name__ == "__main__":
    main()
