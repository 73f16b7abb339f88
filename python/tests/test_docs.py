"""What `help` shows is what editors show: docstrings of the native methods are those of their stubs."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import tuco

STUB = Path(tuco.__file__).with_name("_native.pyi")


def documented() -> list[tuple[str, str, str]]:
    classes = [node for node in ast.parse(STUB.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    methods = ((each.name, node) for each in classes for node in each.body if isinstance(node, ast.FunctionDef))
    found = ((kind, node.name, ast.get_docstring(node)) for kind, node in methods)
    return [(kind, name, text) for kind, name, text in found if text and kind == "Pair"]


@pytest.mark.parametrize(("kind", "name", "text"), documented())
def test_help_is_the_stub_s(kind, name, text):
    assert inspect.getdoc(getattr(getattr(tuco._native, kind), name)) == text
