#!/usr/bin/env python3
"""Make the golden files for chat templates and tokenization of this folder.

    pip install transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6 gguf==0.19.0
    python tests/golden/templates/generate.py

Writes
  cases.json         chat templates, what they are given, and the text transformers' renderer makes of it
  tokenizer.json     a tiny byte-level BPE tokenizer
  tokenization.json  its token ids for plain texts and, through a template, for conversations
  gguf/*.gguf        the same tokens in llama.cpp's metadata, a file for each rule of cutting a text
  gguf.json          what the tokenizers of `transformers` with that rule make of the texts

A case of cases.json: name, template, bos_token and eos_token (null: not defined in the template), messages, tools (optional),
add_generation_prompt, date (optional: the day `strftime_now` sees), and either `expected`, the rendered text, or `raises`, a
part of the error's message (empty where only the failure matters, not Jinja's wording of it).

The templates are written for this test: in cases.py small ones, each for a few features; in families.py the formats of the families.
Texts and tokenizers are in tokenization.py.
"""

import json
from datetime import datetime
from unittest import mock

import transformers
from cases import CASES
from tokenization import HERE, TEXTS, gguf_tokenization, tokenization, train_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils


class Frozen(datetime):
    """The clock `strftime_now` reads."""

    today = None

    @classmethod
    def now(cls, tz=None):
        return cls.strptime(cls.today, "%Y-%m-%d")


def render(case):
    tokens = {key: case[key] for key in ("bos_token", "eos_token") if case[key] is not None}
    Frozen.today = case.get("date", "1999-12-31")
    with mock.patch.object(chat_template_utils, "datetime", Frozen):
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[case["messages"]],
            tools=case.get("tools"),
            chat_template=case["template"],
            add_generation_prompt=case["add_generation_prompt"],
            **tokens,
        )
    return rendered[0]


def finish(case):
    """Add `expected`, or make sure the case does raise what it says."""
    if "raises" not in case:
        return case | {"expected": render(case)}
    try:
        text = render(case)
    except Exception as error:  # Jinja's and Python's own errors alike
        assert case["raises"] in str(error), (case["name"], error)
        return case
    raise AssertionError(f"{case['name']} does not raise but gives {text!r}")


def write(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    transformers.utils.logging.set_verbosity_error()
    write("cases.json", {"transformers": transformers.__version__, "cases": [finish(case) for case in CASES]})
    trained = train_tokenizer()
    trained.save(str(HERE / "tokenizer.json"))
    write("gguf.json", gguf_tokenization(trained))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(HERE / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    write("tokenization.json", {"transformers": transformers.__version__, **tokenization(tokenizer)})
    print(f"{len(CASES)} templates, {len(TEXTS)} texts, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
