#!/usr/bin/env python3
"""`tuco score` against a good `transformers` script (transformers_peer.py), on one pair, in one run. Prints Markdown.

    cargo build --release
    python benches/vs_transformers.py --base DIR --tuned DIR --tuco target/release/tuco

Prompts are random tokens of the vocabulary, lengths uniform in 20..400. The processes run one after another, never together,
and take turns: tuco on all prompts, peer on all, tuco on a few, peer on a few, and again `--repeat` times.
  whole process  wall time of the run on all prompts: start, load, score, write
  steady state   tokens per second of (all - few): what start and load cost is the same in both and falls out
  peak memory    the most resident memory of the process; mapped weight files count as far as they were touched
Without --tuco only the peer is timed.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata

PEER = pathlib.Path(__file__).resolve().with_name("transformers_peer.py")
SHORTEST, LONGEST = 20, 400


@dataclass
class Runs:
    """What was measured of one program: seconds of its runs on all prompts and on a few, and its largest peak memory."""

    all_seconds: list = field(default_factory=list)
    few_seconds: list = field(default_factory=list)
    peak_bytes: int = 0


# --------------------------------------------------------------------------------------------------------------- prompts


def make_prompts(count, vocab, seed):
    rng = random.Random(seed)
    lengths = [rng.randint(SHORTEST, LONGEST) for _ in range(count)]
    return [{"id": i, "token_ids": [rng.randrange(vocab) for _ in range(n)]} for i, n in enumerate(lengths)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tokens_in(prompts):
    return sum(len(prompt["token_ids"]) for prompt in prompts)


# ------------------------------------------------------------------------------------------------------------- processes


def run(command, threads):
    """Run to the end; returns (seconds, peak resident bytes)."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # wait4 has reaped it: Popen must not wait again
        if process.returncode:
            log.seek(0)
            sys.exit(f"{shlex.join(map(str, command))} ended with {process.returncode}:\n{log.read().decode()}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def tuco_command(arguments, prompts, output):
    return [
        *(arguments.tuco, "score", "--base", arguments.base, "--tuned", arguments.tuned, prompts, "-o", output),
        *("--threads", str(arguments.threads), *shlex.split(arguments.tuco_args)),
    ]


def peer_command(arguments, prompts, output):
    return [
        *(sys.executable, PEER, "--base", arguments.base, "--tuned", arguments.tuned, prompts, "-o", output),
        *("--threads", str(arguments.threads), "--dtype", arguments.dtype, "--batch-tokens", str(arguments.batch_tokens)),
    ]


def measure(arguments, programs, files, folder):
    """Times all programs in turn; returns {program: Runs} and {program: rows of its last run on all prompts}."""
    runs = {name: Runs() for name in programs}
    rows = {}
    for turn in range(arguments.repeat):
        for which in ("all", "few"):
            for name, command_for in programs.items():
                # A new name each time: tuco resumes an output that is there.
                output = folder / f"{name}-{which}-{turn}.jsonl"
                seconds, peak = run(command_for(arguments, files[which], output), arguments.threads)
                getattr(runs[name], f"{which}_seconds").append(seconds)
                runs[name].peak_bytes = max(runs[name].peak_bytes, peak)
                if which == "all":
                    rows[name] = read_jsonl(output)
                print(f"turn {turn + 1}, {which} prompts, {name}: {seconds:.2f} s", file=sys.stderr)
    return runs, rows


# ---------------------------------------------------------------------------------------------------------------- report


def steady_rate(runs, extra_tokens):
    """Tokens per second once running."""
    return extra_tokens / (statistics.median(runs.all_seconds) - statistics.median(runs.few_seconds))


def seconds_text(seconds):
    middle = f"{statistics.median(seconds):.2f} s"
    return middle if len(seconds) == 1 else f"{middle} ({min(seconds):.2f} to {max(seconds):.2f})"


def table(runs, tokens):
    rates = {name: steady_rate(run, tokens["all"] - tokens["few"]) for name, run in runs.items()}
    lines = [
        ("whole process", {name: seconds_text(run.all_seconds) for name, run in runs.items()}),
        ("steady state", {name: f"{rate:.0f} tokens/s" for name, rate in rates.items()}),
        ("start, load and a few prompts", {name: seconds_text(run.few_seconds) for name, run in runs.items()}),
        ("peak memory", {name: f"{run.peak_bytes / 2**20:.0f} MiB" for name, run in runs.items()}),
    ]
    ratios = [""] * len(lines)
    if "tuco" in runs:
        tuco, peer = runs["tuco"], runs["transformers"]
        ratios = [
            f"{statistics.median(peer.all_seconds) / statistics.median(tuco.all_seconds):.2f} x",
            f"{rates['tuco'] / rates['transformers']:.2f} x",
            f"{statistics.median(peer.few_seconds) / statistics.median(tuco.few_seconds):.2f} x",
            f"{peer.peak_bytes / tuco.peak_bytes:.2f} x",
        ]
    yield "| | " + " | ".join(runs) + " | transformers / tuco |"
    yield "|---|" + "---|" * (len(runs) + 1)
    for (label, cells), ratio in zip(lines, ratios):
        yield f"| {label} | " + " | ".join(cells[name] for name in runs) + f" | {ratio} |"


def agreement(rows):
    """Largest relative difference of TuCo between the two programs, and the prompt it is on."""
    tuco = {row["id"]: row.get("tuco") for row in rows["tuco"]}
    peer = {row["id"]: row["tuco"] for row in rows["transformers"]}
    if tuco.keys() != peer.keys() or None in tuco.values():
        sys.exit("the two programs did not score the same prompts")
    return max((abs(tuco[key] - peer[key]) / peer[key], key) for key in peer)


def first_output_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def cpu_model():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def report(arguments, runs, rows, prompts, tokens):
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {metadata.version(package)}" for package in ("torch", "transformers")]
    if arguments.tuco:
        commit = first_output_line(["git", "-C", str(PEER.parent), "rev-parse", "--short", "HEAD"])
        versions.insert(0, f"{first_output_line([arguments.tuco, '--version'])} (commit {commit})")
    print(
        f"{len(prompts)} prompts of {SHORTEST} to {LONGEST} tokens ({tokens['all']} tokens, seed {arguments.seed}), "
        f"{arguments.threads} threads, transformers in {arguments.dtype} with at most {arguments.batch_tokens} padded tokens "
        f"a batch, median of {arguments.repeat}.  \nMachine: {cpu_model()}, {cores()} cores, {platform.system()}.  \n"
        f"Versions: {', '.join(versions)}.\n"
    )
    print("\n".join(table(runs, tokens)))
    if "tuco" in rows:
        worst, where = agreement(rows)
        print(f"\nLargest relative difference of TuCo between the two: {worst:.1e} (prompt {where}).")


# ------------------------------------------------------------------------------------------------------------------ main


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--tuco", help="the binary to measure; without it only the peer runs")
    parser.add_argument("--tuco-args", default="", help="more flags for `tuco score`, as one string")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--few", type=int, default=8, help="prompts of the small file that steady state is taken against")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="what the peer computes in")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="the peer's batches: padded tokens at most")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    if not 0 < arguments.few < arguments.prompts or arguments.repeat < 1:
        parser.error("needs 0 < --few < --prompts and --repeat of at least 1")
    return arguments


def main():
    arguments = parse_arguments()
    config = json.loads(pathlib.Path(arguments.tuned, "config.json").read_text(encoding="utf-8"))
    prompts = {"all": make_prompts(arguments.prompts, config["vocab_size"], arguments.seed)}
    prompts["few"] = prompts["all"][: arguments.few]
    programs = {"tuco": tuco_command} if arguments.tuco else {}
    programs["transformers"] = peer_command
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        files = {which: folder / f"{which}.jsonl" for which in prompts}
        for which, path in files.items():
            write_jsonl(path, prompts[which])
        runs, rows = measure(arguments, programs, files, folder)
    report(arguments, runs, rows, prompts["all"], {which: tokens_in(some) for which, some in prompts.items()})


if __name__ == "__main__":
    main()
