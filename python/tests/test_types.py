"""What type checkers say of programs that use the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

HERE = Path(__file__).parent


def test_documented_calls_have_types(tmp_path):
    options = ["--strict", f"--cache-dir={tmp_path}", f"--config-file={HERE.parent / 'pyproject.toml'}"]
    # Where tests start, there are the sources.
    command = [sys.executable, "-m", "mypy", *options, str(HERE / "typed.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
