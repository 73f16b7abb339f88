"""The command line that comes with the package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import DEMO

import tuco
from tuco import _native

PAIR = [f"--base={DEMO / 'base'}", f"--tuned={DEMO / 'tuned'}", "--device=cpu"]
PROMPTS = str(DEMO / "prompts.jsonl")


@pytest.mark.parametrize("program", [[sys.executable, "-m", "tuco"], [str(Path(sys.executable).with_name("tuco"))]])
def test_it_is_the_program(command_line, program, tmp_path, monkeypatch):
    # Where tests start, there are the sources.
    monkeypatch.chdir(tmp_path)
    words = ["score", *PAIR, PROMPTS, "--limit=3", "--quiet"]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == command_line(*words)
    assert subprocess.run([*program, "score", "--help"], capture_output=True).returncode == 0
    wrong = subprocess.run([*program, "score", *PAIR, "absent.jsonl"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("tuco: cannot read absent.jsonl")
    assert subprocess.run([*program, "score", "--layer"], capture_output=True).returncode == 2


def test_sigterm_stops_it_cleanly(tmp_path):
    output = tmp_path / "scores.jsonl"
    words = ["score", *PAIR, PROMPTS, f"--output={output}", "--batch-size=1"]
    program = [sys.executable, "-m", "tuco"]
    with subprocess.Popen([*program, *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        while not output.exists() or not output.stat().st_size:
            assert running.poll() is None
            time.sleep(0.002)
        running.terminate()
        _, told = running.communicate()
    assert running.returncode == 75 and "the same command goes on" in told
    assert 0 < len(output.read_text().splitlines()) < 160


def test_in_a_program_it_raises_and_reads_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TUCO_BASE", "absent")
    monkeypatch.setenv("TUCO_LIMIT", "1")
    output = tmp_path / "scores.jsonl"
    _native.run(["score", *PAIR, PROMPTS, f"--output={output}", "--limit=2", "--quiet"])
    assert len(output.read_text().splitlines()) == 2
    monkeypatch.delenv("TUCO_LIMIT")
    with pytest.raises(tuco.MismatchError, match="limit"):
        _native.run(["score", *PAIR, PROMPTS, f"--output={output}"])
    with pytest.raises(tuco.UsageError, match="not provided: --base"):
        _native.run(["score", PAIR[1], PROMPTS])
    with pytest.raises(tuco.UsageError, match="^unexpected argument '--layer' found"):
        _native.run(["score", "--layer"])
    with pytest.raises(tuco.IncompleteError, match="shard 1/2 is missing"):
        _native.run(["score", *PAIR, PROMPTS, f"--output={tmp_path / 'shards'}", "--shard=0/2", "--quiet"])
        _native.run(["merge", str(tmp_path / "shards"), f"--output={tmp_path / 'merged.jsonl'}"])


def test_ctrl_c_in_a_program_stops_after_what_is_written(tmp_path):
    output = tmp_path / "scores.jsonl"
    words = ["score", *PAIR, PROMPTS, f"--output={output}", "--batch-size=1", "--quiet"]

    def interrupt() -> None:
        while not output.exists() or not output.stat().st_size:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=interrupt)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        _native.run(words)
    pressing.join()
    rows = output.read_bytes()
    assert rows.endswith(b"\n") and 0 < rows.count(b"\n") < 160
    _native.run(words)
    assert output.read_bytes().startswith(rows) and output.read_bytes().count(b"\n") == 160
