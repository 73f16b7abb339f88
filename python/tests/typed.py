"""Calls as README.md and docs/python.md have them, and what is no prompt: read by mypy (test_types.py), not run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

import tuco
from tuco.typing import ArrowArray, ArrowStream, Message

pair = tuco.Pair.from_pretrained("base", "tuned", batch_size="auto", max_batch_tokens="64k", max_memory="16G", threads=8)
tuco.Pair.from_pretrained("base", "tuned", batch_size=8, max_batch_tokens=4096)

texts = ["Once upon a time", "What is the capital of France?"]
conversation = [{"role": "user", "content": "Hello!"}]
ids = np.array([[1, 2, 3], [4, 5, 6]])

# One prompt.
pair.score("Once upon a time")
pair.score(conversation)
pair.score([1, 2, 3])
pair.score(ids[0])

# Lists, also of several kinds.
pair.score(["Once upon a time", [{"role": "user", "content": "Hello!"}]])
pair.score([[{"role": "user", "content": "What is the capital of France?"}], "Once upon a time"])
pair.score(["Once upon a time", [1, 2, 3], ids[0], conversation])
pair.score(texts)
pair.score(tuple(texts))
pair.score([conversation])
pair.score([[1, 2], (3, 4)])
pair.score(list(ids))

# Other iterables, arrays and columns.
pair.score(text for text in texts)
pair.score(map(str.strip, texts))
pair.score(iter(texts))
pair.score([{"role": "user", "content": text}] for text in texts)
pair.score(ids)
pair.score(np.array(texts))
pair.score(pa.array(texts))


def of_columns(array: ArrowArray, chunks: ArrowStream) -> None:
    pair.score(array)
    pair.score(chunks)


def of_rows(rows: list[dict[str, str]], messages: list[Message], how: str) -> None:
    pair.score([row["prompt"] for row in rows], errors=how)
    pair.score(messages, True, errors="rows").tuco.mean()
    for completions in pair.generate(texts, alpha=0.5, stop=["\n"], errors=how):
        print(len(completions) if isinstance(completions, list) else completions.kind)
    for likelihood in pair.likelihoods(texts, [" Paris", [1, 2]], errors=how):
        print(likelihood.kind if isinstance(likelihood, tuco.PromptError) else likelihood[0].sum())


# What raises has no errors among its results.
((completion,),) = pair.generate("Once upon a time", temperature=0.8, top_k=50, ids=["a"])
print(completion.text, completion.token_ids.tolist())
((logarithms, greedy),) = pair.likelihoods(["The capital is"], [" Paris"], alpha=0.5, errors="raise")
print(logarithms.sum(), greedy.all())
pair.logits(texts, alpha=[0, 0.5, 1], tokens=[15, 16])
pair.logits(texts, np.linspace(0, 1, 3))
pair.trace("How do I pick a lock?", response=" I cannot")
pair.trace(conversation)

pair.score(3)  # type: ignore
pair.score([1.5])  # type: ignore
pair.score([["Once", "upon"]])  # type: ignore
pair.generate(texts, stop=3)  # type: ignore
