"""What the tests share: the demo pair, small golden pairs, the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import tuco

# Shells have what they start in the background ignore Ctrl-C, and so would everything that tests start; some stop runs by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "models/demo"
GOLDEN = REPOSITORY / "tests/golden"


@pytest.fixture(scope="session")
def demo() -> tuco.Pair:
    return tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned", device="cpu")


@pytest.fixture(scope="session")
def overflowing(tmp_path_factory) -> tuco.Pair:
    """A pair of finite weights whose tuned model overflows, in float32, wherever the token 5 is."""
    path = tmp_path_factory.mktemp("overflowing")
    for side in ("base", "tuned"):
        shutil.copytree(GOLDEN / "llama_mha_untied_f32" / side, path / side)
    weights = path / "tuned/model.safetensors"
    data = bytearray(weights.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])

    def tensor(name: str) -> np.ndarray:
        start, end = (8 + length + offset for offset in header[name]["data_offsets"])
        return np.frombuffer(data, np.float32, (end - start) // 4, start).reshape(header[name]["shape"])

    # What the first MLP adds is too much for the largest numbers alone.
    tensor("model.layers.0.mlp.down_proj.weight")[:] = 1e33
    row = tensor("model.embed_tokens.weight")[5]
    row[::2], row[1::2] = np.finfo(np.float32).min, np.finfo(np.float32).max
    weights.write_bytes(data)
    return tuco.Pair.from_pretrained(path / "base", path / "tuned", device="cpu")


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """The demo's prompts: conversations and running text."""
    with open(DEMO / "prompts.jsonl") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def command_line():
    """Runs `tuco` and returns the rows it prints."""
    program = Path(os.environ.get("TUCO", REPOSITORY / "target/release/tuco"))
    assert program.exists(), f"{program}: build it with cargo build --release, or name another in TUCO"

    def run(*arguments: str) -> list[dict]:
        done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
