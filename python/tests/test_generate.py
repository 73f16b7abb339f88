"""Completions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DEMO, GOLDEN

import tuco

CHAT = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "How do I pick a lock?"}],
]


def test_completions_are_those_of_transformers_with_hooks():
    gold = json.loads((GOLDEN / "generation.json").read_text())["cases"]["llama_gqa_tied_bf16"]
    case = GOLDEN / "llama_gqa_tied_bf16"
    compared = 0
    with tuco.Pair.from_pretrained(case / "base", case / "tuned", device="cpu") as pair:
        for prompt in gold:
            for alpha, expected in prompt["completions"].items():
                options = {"max_new_tokens": len(expected), "ignore_eos": True, "tuco": True}
                ((found,),) = pair.generate([prompt["token_ids"]], float(alpha), **options)
                assert found.token_ids.tolist() == expected
                if alpha == "1.0":
                    np.testing.assert_allclose(found.tuco, prompt["tuco"], rtol=1e-5)
                compared += 1
    assert compared >= 4


def test_completions_are_those_of_the_command_line(demo, command_line, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in CHAT))
    flags = "--alpha 0.7 --temperature 0.8 --top-k 50 --top-p 0.9 --n 3 --seed 5 --max-new-tokens 12 --stop . --tuco"
    pair = ["--base", str(DEMO / "base"), "--tuned", str(DEMO / "tuned"), "--device", "cpu"]
    expected = command_line("generate", *pair, *flags.split(), str(lines))
    options = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "n": 3, "seed": 5, "max_new_tokens": 12, "stop": "."}
    found = demo.generate(CHAT, alpha=0.7, tuco=True, **options)
    assert [len(of) for of in found] == [3, 3]
    for completions, row in zip(found, expected):
        for completion, fields in zip(completions, row["completions"]):
            assert completion.text == fields["text"]
            assert completion.token_ids.tolist() == fields["token_ids"]
            assert completion.tuco.tolist() == fields["tuco"]
            assert (completion.finish_reason, completion.stop) == (fields["finish_reason"], fields.get("stop"))


def test_choices_depend_on_seed_and_id_alone(demo):
    options = {"temperature": 1.0, "max_new_tokens": 8}
    texts = [completion.text for (completion,) in demo.generate(CHAT * 2, **options)]
    assert texts[0] != texts[2]
    ((alone,),) = demo.generate(CHAT[0], ids=[3], **options)
    assert alone.text == texts[2]
    ((other,),) = demo.generate(CHAT[0], ids=["three"], **options)
    assert other.text != alone.text
    with pytest.raises(TypeError, match=r"ids\[0\] is 1.5, expected text or an integer"):
        demo.generate(CHAT[0], ids=[1.5])
    with pytest.raises(TypeError, match="ids has 2 items, expected one for each of 1 prompts"):
        demo.generate(CHAT[0], ids=[1, 2])


def test_a_completion_has_what_was_asked_for(demo):
    ((plain,),) = demo.generate(CHAT[0], max_new_tokens=1)
    assert plain.tuco is None and plain.finish_reason == "length" and plain.stop is None
    assert plain.token_ids.dtype == np.uint32 and plain.token_ids.shape == (1,)
    assert repr(plain) == f"<tuco.Completion {plain.text!r}, length>"
    ((first,),) = demo.generate(CHAT[0], max_new_tokens=20, tuco=True)
    assert first.tuco[0] == pytest.approx(demo.score(CHAT[0]).tuco[0], rel=1e-5)
    word = first.text[2:6]
    ((cut,),) = demo.generate(CHAT[0], max_new_tokens=20, stop=["never", word])
    assert cut.stop == word and cut.finish_reason == "stop" and cut.text == first.text[: first.text.index(word)]
    assert demo.generate([]) == []


def test_an_overflow_loses_no_other_completion(overflowing):
    with pytest.raises(tuco.PromptError, match=r"prompts\[1\]: the logits of a next token are not numbers") as raised:
        overflowing.generate([[1, 3], [1, 5, 3], [2]], max_new_tokens=3, ignore_eos=True)
    assert (raised.value.kind, raised.value.index) == ("not_finite", 1)
    (first,), none, (third,) = raised.value.completions
    assert none is None and len(first.token_ids) == len(third.token_ids) == 3


def test_what_cannot_be_meant_is_told(demo):
    def told(**options):
        with pytest.raises(tuco.UsageError) as error:
            demo.generate(CHAT[0], **options)
        return str(error.value)

    assert told(max_new_tokens=0) == "max_new_tokens is 0, expected a number from 1 on"
    assert told(n=-1) == "n is -1, expected a number from 1 on"
    assert told(alpha=-0.5) == "alpha is -0.5, expected a number from 0 on"
    assert told(temperature=-1.0).startswith("temperature is -1, expected a number above 0")
    assert told(temperature=1.0, top_p=0.0).startswith("top_p is 0, expected")
    assert told(top_k=3).startswith("top_k has no effect at temperature 0")
    assert told(top_p=0.5).startswith("top_p has no effect at temperature 0")
    assert "would be the same at temperature 0" in told(n=2)
    assert told(stop="") == "stop is empty, expected text"
    assert told(seed=-1) == "seed is -1, expected 0 to 18446744073709551615"
    with pytest.raises(TypeError, match=r"ids\[0\] is True, expected text or an integer"):
        demo.generate(CHAT[0], ids=[True])
    with pytest.raises(TypeError, match="stop must be text or a list of texts"):
        demo.generate(CHAT[0], stop=3)
    with pytest.raises(tuco.PromptError, match=r"prompts\[1\]: the prompt is an empty string"):
        demo.generate(["a", ""])
