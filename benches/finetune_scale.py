#!/usr/bin/env python3
"""How exact TuCo is by size of the fine-tune: the tuned weights are moved to base + s · (tuned − base) for some s, and `tuco score`
on a device is compared with `--device reference` (plain float64) or `--device cpu` (within 3e-6 of it). Prints Markdown.

    cargo build --release --features cuda
    python benches/finetune_scale.py --base DIR --tuned DIR --tuco target/release/tuco --device cuda PROMPTS.jsonl

Needs numpy. The moved weights are computed in float64 and stored as float32; with --dtype bfloat16 they are rounded as those of
most checkpoints are, which loses small changes but lets a GPU take the path of such checkpoints (docs/gpu.md). The temporary folder
(TMPDIR) holds one moved model at a time. What one of the device's modes costs is seen with --device-args, for example
"--context-precision bfloat16" or "--kernels sm_80".
  median TuCo   of the prompts, by the yardstick
  other columns the largest |TuCo / yardstick − 1| of all prompts
With --transformers (needs torch and transformers) there is a column for transformers_peer.py in bfloat16 on the CPU, what hooks on
two models give. It rounds float32 weights too: with --dtype bfloat16 its column tells of the arithmetic alone.
"""

import argparse
import json
import math
import pathlib
import shlex
import statistics
import sys
import tempfile

import numpy
from vs_transformers import PEER, first_output_line, read_jsonl, run, write_jsonl

INDEX = "model.safetensors.index.json"
FIELDS = ("prompt", "messages", "token_ids", "prompt_token_ids")
# numpy has no bfloat16: its bits.
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
DTYPES = {"float32": "F32", "bfloat16": "BF16"}


# --------------------------------------------------------------------------------------------------------------- weights


class Weights:
    """Tensors of a checkpoint in safetensors, read one at a time: of large models not all fit into memory."""

    def __init__(self, folder):
        index = folder / INDEX
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else ["model.safetensors"]
        self.files, self.places = {}, {}
        for file in sorted(set(shards)):
            with open(folder / file, "rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            self.files[file] = list(header)
            for name, tensor in header.items():
                if tensor["dtype"] not in STORED:
                    sys.exit(f"{folder / file}: {name} is {tensor['dtype']}; expected one of {', '.join(STORED)}")
                self.places[name] = folder / file, 8 + length + tensor["data_offsets"][0], tensor["dtype"], tensor["shape"]

    def shape(self, name):
        return self.places[name][3]

    def read(self, name):
        path, start, dtype, shape = self.places[name]
        values = numpy.fromfile(path, STORED[dtype], math.prod(shape), offset=start)
        if dtype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return values.astype(numpy.float64).reshape(shape)


def stored(values, dtype):
    values = values.astype("<f4")
    if dtype == "BF16":
        bits = values.view("<u4")
        # To the nearest, of two as near to the even one.
        values = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return values.tobytes()


def moved(base, tuned, name, size):
    """base + size · (tuned − base); what only the tuned model has, as a tensor or as tokens at the tail of its vocabulary, stays."""
    values = tuned.read(name)
    if name in base.places:
        before = base.read(name)
        if before.shape[1:] != values.shape[1:]:
            sys.exit(f"{name}: {[*before.shape]} in the base, {[*values.shape]} in the tuned model")
        common = min(len(before), len(values))
        values[:common] = before[:common] + size * (values[:common] - before[:common])
    return values


def write_moved(base, tuned, folder, size, dtype):
    """A checkpoint like the one in folder `tuned`, its weights moved; all other files are links."""
    pt, ft = Weights(base), Weights(tuned)
    for path in tuned.iterdir():
        if path.name not in ft.files:
            (folder / path.name).symlink_to(path.resolve())
    width = numpy.dtype(STORED[dtype]).itemsize
    for file, names in ft.files.items():
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            start, end = end, end + width * math.prod(ft.shape(name))
            header[name] = {"dtype": dtype, "shape": ft.shape(name), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                opened.write(stored(moved(pt, ft, name, size), dtype))


# --------------------------------------------------------------------------------------------------------------- scores


def read_prompts(path, limit):
    """Rows numbered anew, with nothing but what is scored."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()][:limit]
    return [{"id": i} | {field: row[field] for field in FIELDS if field in row} for i, row in enumerate(rows)]


def tokenized(prompts, folder):
    """Prompts as transformers reads them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in prompts:
        ids = row.get("token_ids") or row.get("prompt_token_ids")
        if "messages" in row:
            ids = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=True)["input_ids"]
        elif ids is None:
            ids = tokenizer(row["prompt"])["input_ids"]
        yield {"id": row["id"], "token_ids": ids}


def tuco_rows(arguments, tuned, prompts, output, device, more=""):
    command = [arguments.tuco, "score", "--base", arguments.base, "--tuned", tuned, prompts, "-o", output]
    command += ["--device", device, "--threads", str(arguments.threads), *shlex.split(more)]
    run(command, arguments.threads)
    rows = read_jsonl(output)
    for row in rows:
        if "error" in row:
            sys.exit(f"prompt {row['id'] + 1}: {row['error']}")
    return rows


def peer_rows(arguments, tuned, prompts, output):
    command = [sys.executable, PEER, "--base", arguments.base, "--tuned", tuned, prompts, "-o", output]
    run([*command, "--threads", str(arguments.threads), "--dtype", "bfloat16"], arguments.threads)
    return read_jsonl(output)


def difference(found, exact):
    """Relative, of TuCo."""
    if found == exact:
        return 0.0
    return abs(found - exact) / exact if exact else math.inf


def largest_difference(rows, exact):
    if [(row["id"], row["n_tokens"]) for row in rows] != [(row["id"], row["n_tokens"]) for row in exact]:
        sys.exit("the two programs did not score the same tokens")
    return max(difference(row["tuco"], true["tuco"]) for row, true in zip(rows, exact))


# ------------------------------------------------------------------------------------------------------------------ main


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=pathlib.Path, help="JSONL as tuco score takes it")
    parser.add_argument("--base", type=pathlib.Path, required=True)
    parser.add_argument("--tuned", type=pathlib.Path, required=True)
    parser.add_argument("--tuco", default="target/release/tuco")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or sim of a program built with the simulator")
    parser.add_argument("--device-args", default="", help="more flags for tuco score on this device, as one string")
    parser.add_argument("--yardstick", choices=["reference", "cpu"], help="default: cpu, for --device cpu reference")
    parser.add_argument("--scales", type=lambda text: [float(s) for s in text.split(",")], default=[1, 0.3, 0.1, 0.03], help="values of s")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the moved weights")
    parser.add_argument("--limit", type=int, help="only the first prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transformers", action="store_true", help="also hooks in bfloat16 with transformers")
    return parser.parse_args()


def compared(arguments, size, yardstick, folder):
    """The cells of a row. Files go into a folder that is new for each s, as tuco resumes an output that is there."""
    tuned = folder / "tuned"
    tuned.mkdir()
    write_moved(arguments.base, arguments.tuned, tuned, size, DTYPES[arguments.dtype])
    prompts = folder.parent / "prompts.jsonl"
    exact = tuco_rows(arguments, tuned, prompts, folder / "exact.jsonl", yardstick)
    found = [tuco_rows(arguments, tuned, prompts, folder / "found.jsonl", arguments.device, arguments.device_args)]
    if arguments.transformers:
        found.append(peer_rows(arguments, tuned, folder.parent / "tokens.jsonl", folder / "peer.jsonl"))
    median = statistics.median(row["tuco"] for row in exact)
    return [f"{size:g}", f"{median:.3g}", *(f"{largest_difference(rows, exact):.1e}" for rows in found)]


def main():
    arguments = parse_arguments()
    yardstick = arguments.yardstick or ("reference" if arguments.device == "cpu" else "cpu")
    prompts = read_prompts(arguments.prompts, arguments.limit)
    commit = first_output_line(["git", "-C", str(PEER.parent), "rev-parse", "--short", "HEAD"])
    print(
        f"{len(prompts)} prompts, tuned weights in {arguments.dtype}, against --device {yardstick}; "
        f"{first_output_line([arguments.tuco, '--version'])} (commit {commit}).\n"
    )
    columns = ["s", "median TuCo", f"--device {arguments.device} {arguments.device_args}".strip()]
    columns += ["transformers in bfloat16"] * arguments.transformers
    print(f"| {' | '.join(columns)} |\n|{'---:|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_jsonl(folder / "prompts.jsonl", prompts)
        if arguments.transformers:
            write_jsonl(folder / "tokens.jsonl", tokenized(prompts, arguments.tuned))
        for size in arguments.scales:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                print(f"| {' | '.join(compared(arguments, size, yardstick, pathlib.Path(own)))} |", flush=True)


if __name__ == "__main__":
    main()
