"""The model of lm-evaluation-harness, against what its `hf` model says of the tuned checkpoint (small_tasks.py)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from small_tasks import DEMO, evaluated
from sqlitedict import SqliteDict

from tuco.lm_eval import TucoLM

PATHS = f"base={DEMO / 'base'},tuned={DEMO / 'tuned'},device=cpu"


@pytest.fixture(scope="module")
def model() -> TucoLM:
    return TucoLM(str(DEMO / "base"), str(DEMO / "tuned"), device="cpu")


def generated(model: TucoLM, options: dict, prompts: list[str]) -> list[str]:
    return model.generate_until([Instance("generate_until", {}, (prompt, options), 0) for prompt in prompts], disable_tqdm=True)


def test_at_alpha_one_it_is_the_tuned_model():
    expected = json.loads((Path(__file__).parent / "hf.json").read_text())
    found = evaluated("tuco", model_args=f"{PATHS},alpha=1.0", batch_size=1)
    assert found["capitals"]["metrics"] == expected["capitals"]["metrics"]
    compared = 0
    for ours, theirs in zip(found["capitals"]["responses"], expected["capitals"]["responses"]):
        assert len(ours) == len(theirs) == 4
        for (value, greedy), (gold, gold_greedy) in zip(ours, theirs):
            assert abs(value - gold) < 1e-4 and greedy == gold_greedy
            compared += 1
    assert compared == 40
    for (ours,), (theirs,) in zip(found["running_text"]["responses"], expected["running_text"]["responses"]):
        assert abs(ours - theirs) < 1e-4
    assert found["answers"] == expected["answers"]


def test_alpha_moves_what_the_model_says(model):
    requests = [Instance("loglikelihood", {}, ("What is the capital of France?", " Paris"), 0)]
    (tuned, _), *_ = model.loglikelihood(requests, disable_tqdm=True)
    base = get_model("tuco").create_from_arg_string(f"{PATHS},alpha=0")
    assert base.alpha == 0.0
    (other, _), *_ = base.loglikelihood(requests, disable_tqdm=True)
    assert abs(tuned - other) > 0.1


def test_the_command_line_needs_no_device(tmp_path):
    """As documented, on a machine without a GPU."""
    (tmp_path / "one.jsonl").write_text('{"q": "Is a horse alive?", "choices": ["Yes", "No"], "label": 0}\n')
    (tmp_path / "one.yaml").write_text(
        "task: one\ndataset_path: json\ndataset_kwargs: {data_files: {test: %s}}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n' % (tmp_path / "one.jsonl")
    )
    paths = f"base={DEMO / 'base'},tuned={DEMO / 'tuned'}"
    command = [sys.executable, "-m", "tuco.lm_eval", "--model", "tuco", "--tasks", "one", "--include_path", str(tmp_path)]
    for device in ["", ",device=cpu"]:
        ran = subprocess.run(
            [*command, "--model_args", paths + device], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path)}
        )
        assert ran.returncode == 0, ran.stderr
        assert "one" in ran.stdout and "acc" in ran.stdout


def test_texts_that_are_too_long_lose_their_beginning(model):
    length = model.max_length
    context, more = model._split(list(range(length)), [7, 8, 9])
    assert len(context) + len(more) == length + 1 and context[-1] == length - 1
    with pytest.raises(ValueError, match=f"a continuation has {length + 1} tokens, expected at most {length}"):
        model._split([1], [2] * (length + 1))
    assert model._loglikelihood_tokens([(None, [5] * length, [7, 8, 9])], disable_tqdm=True)[0][0] < 0


def test_prompts_that_are_too_long_lose_their_beginning(model, caplog):
    with caplog.at_level(logging.WARNING, "tuco.lm_eval"):
        (text,) = generated(model, {"max_gen_toks": 4}, ["a " * model.max_length])
    (told,) = caplog.messages
    assert told.endswith("tokens too many; they are cut from its beginning")
    assert generated(model, {"max_gen_toks": 4}, ["a " * (model.max_length - 1) + "a "]) == [text]


def test_random_choices_depend_on_the_request_and_the_seed(model):
    options = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    (alone,) = generated(model, options, ["Paris is"])
    _, after, again = generated(model, options, ["Rome is", "Paris is", "Paris is"])
    assert after == alone != again
    (seeded,) = generated(model, {**options, "seed": 5}, ["Paris is"])
    assert seeded != alone
    other = TucoLM(str(DEMO / "base"), str(DEMO / "tuned"), device="cpu", seed=5)
    assert generated(other, options, ["Paris is"]) != [alone]


def test_a_cache_has_the_answers_of_one_model(model, tmp_path, monkeypatch):
    path, requests = str(tmp_path / "cache.db"), [Instance("loglikelihood", {}, ("The capital is", " Paris"), 0)]
    tuned = tmp_path / "tuned"
    shutil.copytree(DEMO / "tuned", tuned)

    def opened(**options):
        return TucoLM(**{"base": str(DEMO / "base"), "tuned": str(tuned), "device": "cpu", **options})

    def refused(match, **options):
        with pytest.raises(ValueError, match=f"cache.db has answers {match}; name another file in use_cache$"):
            CachingLM(opened(**options), path)

    answers = CachingLM(opened(), path).loglikelihood(requests)
    # What answers do not depend on, and what is said otherwise but meant alike.
    again = opened(threads=1, max_batch_tokens=512, dtype="auto", alpha=1, max_length=model.max_length)
    monkeypatch.setattr(again, "loglikelihood", None)
    assert CachingLM(again, path).loglikelihood(requests) == answers
    refused("of another model: alpha was 1.0 and is now 0.0", alpha=0)
    more = f"seed was 0 and is now 1, tuned was {tuned} of .* and is now {DEMO / 'tuned'} of .*"
    refused(f"of another model: {more}", seed=1, tuned=str(DEMO / "tuned"))
    # Another training may write where the last one did.
    os.utime(tuned / "model.safetensors", (4e9, 4e9))
    refused(f"of another model: tuned was {tuned} of .* and is now {tuned} of 2096-10-02 .*")
    with SqliteDict(path, autocommit=True) as cache:
        del cache["tuco"]
    refused("that do not say what model gave them")


def test_a_conversation_may_go_on(model):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The answer is"}]
    whole = model.apply_chat_template(messages[:1])
    assert model.apply_chat_template(messages, add_generation_prompt=False) == whole + "The answer is"
    # The template's own first token is not doubled.
    assert model.tok_encode(whole).count(model.prefix_token_id) == 1


def test_options_that_have_no_meaning_are_refused(model):
    def told(options):
        with pytest.raises(ValueError) as error:
            generated(model, options, ["a"])
        return str(error.value)

    assert told({"until": ["."], "repetition_penalty": 2}) == "generation options that tuco does not have: repetition_penalty"
    assert told({"num_beams": 10}) == "num_beams is 10, expected 1: tuco has no beam search"
    assert generated(model, {"max_gen_toks": 1, "num_beams": 1}, ["a"]) == generated(model, {"max_gen_toks": 1}, ["a"])
    assert "expected less than" in told({"max_gen_toks": model.max_length})
    with pytest.raises(ValueError, match="--apply_chat_template"):
        TucoLM(str(DEMO / "base"), str(DEMO / "tuned"), apply_chat_template=True)
