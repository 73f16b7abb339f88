"""Scores: the command line's bits, whatever the prompts come as."""

from __future__ import annotations

import gc
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import DEMO, GOLDEN

import tuco


def content(row: dict):
    return row["messages"] if "messages" in row else row["prompt"]


def test_scores_are_those_of_the_command_line(demo, rows, command_line):
    expected = command_line(
        *("score", "--base", str(DEMO / "base"), "--tuned", str(DEMO / "tuned"), "--device", "cpu"),
        *("--layers", "--output-co", "-q", str(DEMO / "prompts.jsonl")),
    )
    scores = demo.score([content(row) for row in rows], layers=True, output_co=True)
    assert len(scores) == len(expected) == 160
    for index, row in enumerate(expected):
        for field in ("id", "label", "meta"):
            row.pop(field, None)
        assert scores[index] == row
    assert scores.beta_per_layer.tolist() == [row["beta_per_layer"] for row in expected]
    assert scores.n_tokens.tolist() == [row["n_tokens"] for row in expected]
    assert list(scores)[-1] == scores[-1] == scores[159]
    with pytest.raises(IndexError):
        scores[160]


@pytest.mark.parametrize("case", ["llama_gqa_tied_bf16", "gemma2", "gpt2"])
def test_scores_are_those_of_transformers(case):
    gold = json.loads((GOLDEN / case / "gold.json").read_text())["prompts"]
    with tuco.Pair.from_pretrained(GOLDEN / case / "base", GOLDEN / case / "tuned", device="cpu") as pair:
        scores = pair.score([prompt["token_ids"] for prompt in gold], layers=True)
    np.testing.assert_allclose(scores.tuco, [prompt["tuco"] for prompt in gold], rtol=3e-6)
    np.testing.assert_allclose(scores.ftc_l1, [prompt["ftc_l1"] for prompt in gold], rtol=3e-6)
    np.testing.assert_allclose(scores.beta_per_layer, [prompt["beta_per_layer"] for prompt in gold], rtol=3e-6)


def test_an_adapter_makes_a_pair_of_one_model():
    case = GOLDEN / "lora"
    gold = json.loads((case / "gold.json").read_text())["prompts"]
    with tuco.Pair.from_pretrained(case / "base", adapter=str(case / "adapter"), device="cpu") as pair:
        scores = pair.score([prompt["token_ids"] for prompt in gold])
    np.testing.assert_allclose(scores.tuco, [prompt["tuco"] for prompt in gold], rtol=3e-6)


def test_a_chat_template_sees_arguments(demo, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(DEMO / "tuned", tokenizer)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if thinking %} I think{% endif %}"
    (tokenizer / "chat_template.jinja").write_text(template)

    def ids(**options):
        with tuco.Pair.from_pretrained(
            DEMO / "base", DEMO / "tuned", device="cpu", threads=1, tokenizer=tokenizer, apply_chat_template=True, **options
        ) as pair:
            return pair.encode(["Hello"])[0].tolist()

    assert ids(chat_template_args={"thinking": False}) == ids()
    assert ids(chat_template_args={"thinking": True})[: len(ids())] == ids() != ids(chat_template_args={"thinking": True})
    with pytest.raises(tuco.UsageError, match="messages cannot be given"):
        ids(chat_template_args={"messages": []})
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages[0]['content'] }} I think")
    assert ids(chat_template=other) == ids(chat_template_args={"thinking": True})


def test_little_memory_gives_the_same_bits(demo):
    prompts = ["Hello there", [3] * 400, "What is a dog?"]
    with tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned", device="cpu", max_memory="4G", threads=np.int64(1)) as small:
        np.testing.assert_array_equal(small.score(prompts).tuco, demo.score(prompts).tuco)
    with pytest.raises(tuco.UsageError, match="--max-memory 1M is too little, the least is"):
        tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned", max_memory="1M")


def test_every_form_of_a_prompt_gives_the_same_bits(demo):
    texts = ["Hello there", "What is a dog?", "ünï ☃"]
    expected = demo.score(texts).tuco
    ids = demo.encode(texts)
    lists = [each.tolist() for each in ids]
    forms = [
        *(tuple(texts), np.array(texts), np.array(texts, dtype=object)),
        *(pa.array(texts), pa.array(texts, pa.large_string()), pa.array(texts, pa.string_view())),
        *(pa.chunked_array([texts[:1], [], texts[1:]]), pa.array(["other", *texts])[1:]),
        *(ids, lists, [np.array(each, dtype) for each, dtype in zip(lists, ("int64", "uint16", ">u4"))]),
        *(pa.array(lists, pa.list_(of)) for of in (pa.uint32(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64())),
        *(pa.array(texts).dictionary_encode(), (text for text in texts), dict(enumerate(texts)).values()),
        # What other rows of a block have is nothing to its slice.
        *(pa.array([[-1], *lists, [-100]], pa.list_(of))[1:-1] for of in (pa.int32(), pa.int64())),
        *(pa.array([[7], *lists], pa.large_list(pa.uint32()))[1:], [texts[0], lists[1], ids[2]]),
    ]
    for form in forms:
        np.testing.assert_array_equal(demo.score(form).tuco, expected, err_msg=repr(form))
    assert demo.score(texts[0]).tuco == demo.score(lists[0]).tuco == demo.score(ids[0]).tuco == expected[0]
    table = np.array([[1, 2, 3], [4, 5, 6]])
    by_row = demo.score(table.tolist()).tuco
    with_null = pa.array([[1, 2, 3], None, [4, 5, 6]], pa.list_(pa.int32(), 3))
    scores = demo.score(with_null, errors="rows")
    np.testing.assert_array_equal(scores.tuco[[0, 2]], by_row)
    assert scores.errors == {1: "the prompt is null"}
    np.testing.assert_array_equal(demo.score(table).tuco, by_row)
    np.testing.assert_array_equal(demo.score(pa.array(table.tolist(), pa.list_(pa.uint32(), 3))).tuco, by_row)
    assert len(demo.score([])) == 0 and demo.score([], layers=True).beta_per_layer.shape == (0, 6)


def test_every_form_of_a_conversation_gives_the_same_bits(demo):
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a dog?"}]
    expected = demo.score(conversation).tuco[0]
    text = demo.apply_chat_template(conversation)
    column = pa.array([conversation, conversation[1:]])
    assert demo.score([conversation]).tuco == demo.score((conversation,)).tuco == expected
    assert demo.score(column).tuco[0] == expected
    assert demo.score(column).tuco[1] == demo.score(conversation[1:]).tuco
    more = [{**message, "name": None, "turn": turn, "tags": ["a"]} for turn, message in enumerate(conversation)]
    assert demo.score(pa.array([more])).tuco == expected
    # The template writes its special tokens itself.
    assert demo.score(demo.encode_text(text)).tuco == expected
    with tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned", apply_chat_template=True) as templated:
        assert templated.score("What is a dog?").tuco == demo.score(conversation[1:]).tuco


def test_tensors_of_other_libraries_are_read_through_numpy(demo):
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.array([5, 6, 7])

    assert demo.score([Tensor()]).tuco == demo.score([5, 6, 7]).tuco


def test_numpy_and_arrow_share_the_memory(demo):
    scores = demo.score(["a b c", "d"], layers=True, all_tokens=True)
    table = scores.to_arrow()
    assert table.column("tuco").chunk(0).buffers()[1].address == scores.tuco.ctypes.data
    values = table.column("beta_per_layer").chunk(0).values
    assert values.buffers()[1].address == scores.beta_per_layer.ctypes.data
    values = table.column("tuco_per_token").chunk(0).values
    assert values.buffers()[1].address == scores.tuco_per_token[0].ctypes.data
    assert pa.record_batch(scores).equals(table.to_batches()[0])
    assert pa.schema(scores) == table.schema
    assert not scores.tuco.flags.writeable and not scores.beta_per_layer.flags.writeable
    tuco_before, column = scores.tuco.tolist(), table.column("tuco")
    array = scores.tuco
    del scores, table
    gc.collect()
    assert array.tolist() == column.to_pylist() == tuco_before


def test_tuco_of_every_token_is_the_trace_s(demo):
    scores = demo.score(["Hello there", "a"], all_tokens=True)
    assert [len(each) for each in scores.tuco_per_token] == scores.n_tokens.tolist()
    np.testing.assert_array_equal(scores.tuco_per_token[0], demo.trace("Hello there").tuco)
    # The scores' own last token is more precise than a trace (f64 rows).
    np.testing.assert_allclose([each[-1] for each in scores.tuco_per_token], scores.tuco, rtol=3e-6)


def test_columns_that_were_not_asked_for_say_how_to_ask(demo):
    scores = demo.score("a")
    for column, flag in [("beta_per_layer", "layers"), ("tuco_per_token", "all_tokens"), ("output_co", "output_co")]:
        with pytest.raises(AttributeError, match=f"{column}.*{flag}=True"):
            getattr(scores, column)


def test_bad_prompts_are_rows_when_asked(demo):
    prompts = ["good", "", "x " * 2000, [1, 99999], "good"]
    (good,) = demo.generate("good", max_new_tokens=2)
    found = demo.generate(prompts, max_new_tokens=2, errors="rows", ids=np.ones(5, int))
    assert [getattr(each, "kind", None) for each in found] == [None, "empty_prompt", "too_long", "token_out_of_range", None]
    assert [each[0].text for each in (found[0], found[4])] == [good[0].text] * 2
    assert found[3].index == 3 and isinstance(found[3], tuco.PromptError)
    scores = demo.score(prompts, layers=True, all_tokens=True, errors="rows")
    assert np.isnan(scores.tuco).tolist() == [False, True, True, True, False]
    assert np.isnan(scores.beta_per_layer).all(axis=1).tolist() == [False, True, True, True, False]
    assert scores.tuco[0] == scores.tuco[4] == demo.score("good").tuco
    assert sorted(scores.errors) == [1, 2, 3] and "takes at most 512" in scores.errors[2]
    assert scores[3] == {"error": {"type": "token_out_of_range", "message": scores.errors[3]}}
    table = scores.to_arrow()
    assert table.column("tuco").is_null().to_pylist() == [False, True, True, True, False]
    assert table.column("error").to_pylist()[1]["type"] == "empty_prompt"
    assert "3 not scored" in repr(scores) and [len(row) for row in scores][1] == 1
    assert demo.score(pa.array(["good", None]), errors="rows").errors == {1: "the prompt is null"}


def overwrite(path: Path, name: str, value: float) -> None:
    """Sets all elements of a float32 tensor of a safetensors file."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    tensor = json.loads(data[8 : 8 + length])[name]
    assert tensor["dtype"] == "F32"
    start, end = (8 + length + offset for offset in tensor["data_offsets"])
    data[start:end] = struct.pack("<f", value) * ((end - start) // 4)
    path.write_bytes(bytes(data))


def test_an_overflow_loses_no_other_score(tmp_path):
    # In float32, the context's rows; a prompt of one token has none.
    for side in ("base", "tuned"):
        shutil.copytree(GOLDEN / "llama_mha_untied_f32" / side, tmp_path / side)
    overwrite(tmp_path / "tuned/model.safetensors", "model.layers.0.mlp.down_proj.weight", 3e38)
    with tuco.Pair.from_pretrained(tmp_path / "base", tmp_path / "tuned", device="cpu") as pair:
        with pytest.raises(tuco.PromptError, match=r"prompts\[1\]: the hidden state overflowed") as raised:
            pair.score([[1], [1, 3, 5], [2]])
        assert raised.value.kind == "not_finite" and raised.value.index == 1
        assert np.isfinite(raised.value.scores.tuco).tolist() == [True, False, True]


def test_an_overflow_of_what_else_is_asked_for_is_an_error(overflowing, tmp_path):
    # The last token's own row is float64 in a score, and float32 in a trace.
    prompts = [[1, 3], [3, 5]]
    assert overflowing.score(prompts, errors="rows").errors == {}
    errors = overflowing.score(prompts, all_tokens=True, errors="rows").errors
    assert list(errors) == [1] and errors[1].startswith("the hidden state overflowed")
    for side in ("base", "tuned"):
        shutil.copytree(GOLDEN / "llama_mha_untied_f32" / side, tmp_path / side)
    overwrite(tmp_path / "base/model.safetensors", "model.layers.0.mlp.down_proj.weight", 3e38)
    with tuco.Pair.from_pretrained(tmp_path / "base", tmp_path / "tuned", device="cpu") as pair:
        scores = pair.score([[1, 3, 5], [2]], output_co=True, errors="rows")
        assert scores.errors == {0: "the base's own hidden state overflowed"}
        assert np.isfinite(scores.output_co).tolist() == [False, True]
