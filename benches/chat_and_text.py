#!/usr/bin/env python3
"""Writes prompts for `tuco compare` (docs/results.md): questions in the chat template, the same as plain text, and running text.

    pip install chatterbot-corpus==1.3.3 pyyaml
    python benches/chat_and_text.py OUT_DIR [--count 250]

The questions are the first lines of the English conversations of the PyPI package chatterbot-corpus (BSD-3-Clause), the passages 70
words each from the Debian packages that the demo pair was trained on (models/demo/data.py).
"""

import argparse
import importlib.util
import json
import pathlib
import random
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "models" / "demo"))
import data

WORDS = 70


def questions():
    package = pathlib.Path(importlib.util.find_spec("chatterbot_corpus").origin).parent
    for path in sorted((package / "data" / "english").glob("*.yml")):
        for conversation in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            first = str(conversation[0]).strip()
            if 3 <= len(first.split()) <= 40:
                yield first


def passages(root):
    sources = [data.bible_paragraphs(root), data.dictd_paragraphs(root, "jargon"), data.dictd_paragraphs(root, "devil")]
    for source in sources:
        for paragraph in source:
            words = paragraph.split()
            if len(words) >= WORDS:
                yield " ".join(words[:WORDS])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=250)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    root = data.unpack_packages(options.out / "cache")
    draw = random.Random(1)
    asked = draw.sample(sorted(set(questions())), options.count)
    texts = draw.sample(sorted(set(passages(root))), options.count)
    rows = {
        "text": [{"id": f"text-{i}", "prompt": text} for i, text in enumerate(texts)],
        "question": [{"id": f"question-{i}", "prompt": text} for i, text in enumerate(asked)],
        "chat": [{"id": f"chat-{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(asked)],
    }
    for name, lines in rows.items():
        (options.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
