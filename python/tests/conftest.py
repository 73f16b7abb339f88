"""What the tests share: the demo pair, small golden pairs, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

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
