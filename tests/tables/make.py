#!/usr/bin/env python3
"""Tables in the form of `cais/mmlu` on the Hugging Face Hub, written by pyarrow 26: question, subject, choices, answer.

    pip install pyarrow
    python tests/tables/make.py
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [("question", pa.string()), ("subject", pa.string()), ("choices", pa.list_(pa.string())), ("answer", pa.int64())]
)


def write(name, rows):
    table = pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)
    pq.write_table(table, Path(__file__).with_name(name))


letters = list("abcd")
write("mmlu_test.parquet", [("What is\nthat, a horse?", "some_animals", ["one", "two", "three", "four"], 1)] * 5)
write(
    "mmlu_dev.parquet",
    [
        ("Other?", "other_things", letters, 2),
        ("First?", "some_animals", letters, 0),
        ("Another?", "other_things", letters, 1),
        ("Second?", "some_animals", letters, 3),
    ],
)
