#!/usr/bin/env python3
"""Our matrix product (bf16 weights, widened before the first product) against numpy's OpenBLAS (float32 weights), same shapes.

    python benches/vs_openblas.py [--threads 2] [--repeat 3]

Runs `cargo bench --bench product` and numpy by turns and prints the best of each as a Markdown table.
"""

import argparse
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def ours(threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    command = ["cargo", "bench", "--quiet", "--bench", "product"]
    lines = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    rates = {}
    for line in lines.splitlines():
        rows, cols, inner, rate = line.split()
        rates[int(rows), int(cols), int(inner)] = float(rate)
    return rates


def openblas(np, shape):
    rows, cols, inner = shape
    a, w = np.random.rand(rows, inner).astype("f4"), np.random.rand(cols, inner).astype("f4")
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ w.T
        seconds.append(time.perf_counter() - start)
    return 2e-9 * rows * cols * inner / min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)
    import numpy as np  # after the variable is set, or OpenBLAS does not see it

    best = {}
    for _ in range(arguments.repeat):
        for shape, rate in ours(arguments.threads).items():
            peer = openblas(np, shape)
            mine, other = best.get(shape, (0, 0))
            best[shape] = (max(mine, rate), max(other, peer))
    print("| rows × cols × inner | tuco, GFLOP/s | OpenBLAS, GFLOP/s | ratio |\n|---|---:|---:|---:|")
    for shape, (mine, other) in best.items():
        print(f"| {' × '.join(map(str, shape))} | {mine:.0f} | {other:.0f} | {mine / other:.2f} |")


if __name__ == "__main__":
    main()
