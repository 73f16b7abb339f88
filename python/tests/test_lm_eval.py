"""The model of lm-evaluation-harness, against what its `hf` model says of the tuned checkpoint (small_tasks.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from small_tasks import DEMO, evaluated

from tuco.lm_eval import TucoLM

PATHS = f"base={DEMO / 'base'},tuned={DEMO / 'tuned'},device=cpu"


@pytest.fixture(scope="module")
def model() -> TucoLM:
    return TucoLM(str(DEMO / "base"), str(DEMO / "tuned"), device="cpu")


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


def test_a_conversation_may_go_on(model):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The answer is"}]
    whole = model.apply_chat_template(messages[:1])
    assert model.apply_chat_template(messages, add_generation_prompt=False) == whole + "The answer is"
    # The template's own first token is not doubled.
    assert model.tok_encode(whole).count(model.prefix_token_id) == 1


def test_options_that_have_no_meaning_are_refused(model):
    def told(options):
        with pytest.raises(ValueError) as error:
            model.generate_until([Instance("generate_until", {}, ("a", options), 0)], disable_tqdm=True)
        return str(error.value)

    assert told({"until": ["."], "repetition_penalty": 2}) == "generation options that tuco does not have: repetition_penalty"
    assert "expected less than" in told({"max_gen_toks": model.max_length})
    with pytest.raises(ValueError, match="--apply_chat_template"):
        TucoLM(str(DEMO / "base"), str(DEMO / "tuned"), apply_chat_template=True)
