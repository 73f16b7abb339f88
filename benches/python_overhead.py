"""Time of `Pair.score` over that of `tuco score`: the same pair, prompts, threads. Wall time of the command line is what its closing
line tells; CPU time, which a busy machine disturbs less, is that of its process less that of a run over one prompt.

    python benches/python_overhead.py [--base DIR --tuned DIR] [--rounds 7] [--repeat 12] [--threads 2]

Needs the package `tuco` (see docs/python.md) and target/release/tuco. Both read the demo's prompts `repeat` times, each time with
another first word; rounds alternate.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import tuco

ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def numbered(line: str, copy: int) -> dict:
    """A row whose text begins with a number: equal prompts would be computed once."""
    row = json.loads(line)
    place, field = (row, "prompt") if "prompt" in row else (row["messages"][-1], "content")
    place[field] = f"{copy} {place[field]}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default=str(ROOT / "models/demo/base"))
    parser.add_argument("--tuned", default=str(ROOT / "models/demo/tuned"))
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--repeat", default=12, type=int)
    parser.add_argument("--rounds", default=7, type=int)
    options = parser.parse_args()
    rows = [numbered(line, copy) for copy in range(options.repeat) for line in open(ROOT / "models/demo/prompts.jsonl")]
    prompts = [row.get("messages") or row["prompt"] for row in rows]
    pair = tuco.Pair.from_pretrained(options.base, options.tuned, device="cpu", threads=options.threads)
    wall, cpu, scored = [], [], None
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({**row, "id": number}) + "\n")
        file.flush()
        command = [ROOT / "target/release/tuco", "score", "--base", options.base, "--tuned", options.tuned]
        command += ["--device", "cpu", "--threads", str(options.threads), file.name]

        def command_line(*more: str) -> tuple[subprocess.CompletedProcess, float]:
            before = cpu_seconds(resource.RUSAGE_CHILDREN)
            done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
            return done, cpu_seconds(resource.RUSAGE_CHILDREN) - before

        for _ in range(options.rounds):
            _, opening = command_line("--limit", "1")
            done, cpu_command = command_line()
            seconds = float(re.search(r"tokens in ([0-9.]+) s", done.stderr)[1])
            start, cpu_start = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF)
            scored = pair.score(prompts, progress=False)
            wall.append((time.perf_counter() - start) / seconds)
            cpu.append((cpu_seconds(resource.RUSAGE_SELF) - cpu_start) / (cpu_command - opening))
            print(f"command line {seconds:.1f} s; Python over it {wall[-1]:.3f}, CPU time {cpu[-1]:.3f}")
    rows = [json.loads(line)["tuco"] for line in done.stdout.splitlines()]
    assert rows == scored.tuco.tolist(), "not the same bits"
    medians = f"{statistics.median(wall):.3f}, CPU time {statistics.median(cpu):.3f}"
    print(f"median {medians} of {options.rounds} rounds, {scored.n_tokens.sum()} tokens")


if __name__ == "__main__":
    main()
