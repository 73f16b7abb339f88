"""What is wrong is told, in the words of the command line, by exceptions that can be told apart."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from conftest import DEMO, GOLDEN

import tuco


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (3, TypeError, "prompts is int, expected text"),
        (None, TypeError, "prompts is NoneType"),
        ({"a"}, TypeError, "prompts is set"),
        ({"role": "user", "content": "a"}, TypeError, "a conversation is a list of dicts"),
        (["a", 3.5], TypeError, r"prompts\[1\] is float, expected text"),
        (["a", None], tuco.PromptError, r"prompts\[1\]: the prompt is null"),
        (np.array([float("nan"), "a"], object), tuco.PromptError, r"prompts\[0\]: the prompt is null"),
        (pa.array([None, None]), tuco.PromptError, r"prompts\[0\]: the prompt is null"),
        (pa.array([[], []]), tuco.PromptError, r"prompts\[0\]: the prompt has no tokens"),
        (pa.array([[None]]), tuco.PromptError, r"prompts\[0\]: token id 0 is null"),
        (["a", [True]], TypeError, r"prompts\[1\]\[0\] is bool"),
        (["a", b"bytes"], TypeError, r"prompts\[1\] is bytes"),
        ([[1, "x"]], TypeError, r"prompts\[0\]\[1\] is str, expected an integer"),
        ([[1, -1]], tuco.PromptError, r"prompts\[0\]: token 1 has id -1, expected 0 to 4294967295"),
        ([[1, 2**40]], tuco.PromptError, r"prompts\[0\]: token 1 has id 1099511627776"),
        (np.arange(10)[::2], ValueError, "not contiguous.*ascontiguousarray"),
        (["a", np.arange(10, dtype=np.uint32)[::-1]], ValueError, r"prompts\[1\] is an array that is not contiguous"),
        (np.zeros((4, 4), int).T[:2], ValueError, "not contiguous"),
        (np.zeros((2, 2, 2), int), ValueError, "3 dimensions"),
        ([np.zeros((2, 2), int)], ValueError, r"prompts\[0\] is an array of 2 dimensions"),
        (np.arange(3.0), TypeError, "array of float64, expected integers"),
        (np.array([1, -2]), tuco.PromptError, r"prompts\[0\]: token 1 has id -2"),
        (np.array([2**63], dtype=np.uint64), tuco.PromptError, "has id 9223372036854775808, expected 0 to"),
        (pa.array([1.5]), TypeError, "Arrow column of Float64, expected strings"),
        (pa.table({"a": ["x"]}), TypeError, "table with columns a, expected one column"),
        (pa.array([1]).dictionary_encode(), TypeError, "Arrow column of Dictionary"),
        (np.array([[1, 2], [3, 2**40]]), tuco.PromptError, r"prompts\[1\]: token 1 has id 1099511627776"),
        (["a", "b\ud800"], tuco.PromptError, r"prompts\[1\]: .*surrogates not allowed"),
        (pa.array([[1], [2, -7]]), tuco.PromptError, r"prompts\[1\]: token 1 has id -7"),
        (pa.array([[1, None]]), tuco.PromptError, r"prompts\[0\]: token id 1 is null"),
        (pa.array([b"ab\xff\xfe", b"x"]).view(pa.string()), TypeError, "cannot be read: .*UTF-?8"),
        (pa.array([[{"role": "user", "content": 3}]]), tuco.PromptError, r"messages\[0\].content must be a string"),
        (pa.array([[{"role": "user", "content": b"x"}]]), TypeError, "messages whose content is Binary"),
        (["a", ""], tuco.PromptError, r"prompts\[1\]: the prompt is an empty string"),
        (["a", []], tuco.PromptError, r"prompts\[1\]: the prompt is an empty list"),
        (np.zeros((1, 0), int), tuco.PromptError, r"prompts\[0\]: the prompt has no tokens"),
        (pa.array(["a", None]), tuco.PromptError, r"prompts\[1\]: the prompt is null"),
        ([[5, 2048]], tuco.PromptError, "token 1 has id 2048, but the model's vocabulary has 2048"),
        ("word " * 1000, tuco.PromptError, "takes at most 512"),
        ([{"role": 3}], tuco.PromptError, r"messages\[0\].role must be a string"),
        ([{"role": "user", "content": {1, 2}}], tuco.PromptError, "set is not JSON serializable"),
        (["a", [{"role": "user", "content": "a", "n": float("nan")}]], tuco.PromptError, r"prompts\[1\]: the messages are no JSON"),
    ],
)
def test_what_is_no_prompt_is_told(demo, prompts, error, message):
    with pytest.raises(error, match=message):
        demo.score(prompts)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"base": "/no/such"}, tuco.UsageError, "--base /no/such"),
        ({"tuned": None}, tuco.UsageError, "--tuned"),
        ({"adapter": DEMO}, tuco.UsageError, "has no adapter_config.json"),
        ({"device": "gpu"}, tuco.UsageError, "expected auto, cpu, cuda, cuda:N, cuda:N,M,… or reference"),
        ({"device": "cuda"}, tuco.TucoError, "cuda"),
        ({"device": "cuda:1,1"}, tuco.UsageError, "device 1 is named twice"),
        ({"dtype": "int8"}, tuco.UsageError, "float32, bfloat16, float16"),
        ({"threads": 0}, tuco.UsageError, "expected 1 to 4096"),
        ({"max_length": 513}, tuco.UsageError, "--max-length is 513, expected 1 to 512"),
        ({"on_overlength": "cut"}, tuco.UsageError, "truncate-left"),
        ({"template_date": "today"}, tuco.UsageError, "--template-date"),
        ({"base": 5}, TypeError, "base is int, expected str or a path"),
        ({"threads": "two"}, tuco.UsageError, "--threads"),
        ({"threads": 1.5}, TypeError, "threads is float, expected int"),
    ],
)
def test_options_that_cannot_be_meant_are_told(options, error, message):
    given = {"base": DEMO / "base", "tuned": DEMO / "tuned", **options}
    with pytest.raises(error, match=message):
        tuco.Pair.from_pretrained(**given)


def test_errors_are_of_the_kinds_that_python_knows(tmp_path):
    with pytest.raises(ValueError, match="model_type|hidden_size") as raised:
        tuco.Pair.from_pretrained(GOLDEN / "gemma2/base", GOLDEN / "qwen2/tuned")
    assert isinstance(raised.value, tuco.MismatchError) and raised.value.exit_code == 42
    shutil.copytree(DEMO / "tuned", tmp_path / "tuned")
    weights = tmp_path / "tuned/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(tuco.CheckpointError, match="model.safetensors"):
        tuco.Pair.from_pretrained(DEMO / "base", tmp_path / "tuned")
    assert issubclass(tuco.ReadWriteError, OSError) and issubclass(tuco.DeviceError, RuntimeError)
    assert issubclass(tuco.OutOfMemoryError, MemoryError) and issubclass(tuco.UsageError, ValueError)
    assert issubclass(tuco.errors.NotFiniteError, OverflowError) and tuco.errors.NotFiniteError.exit_code == 42
    error = tuco.PromptError("m", 3, "too_long")
    error.logits = np.ones(2)
    error = pickle.loads(pickle.dumps(error))
    assert (str(error), error.index, error.kind, error.logits.tolist()) == ("m", 3, "too_long", [1, 1])


def test_a_closed_pair_says_so():
    with tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned") as pair:
        assert not pair.closed
    assert pair.closed and "closed" in repr(pair)
    pair.close()
    for use in (pair.score, pair.logits, pair.trace, pair.encode, pair.encode_text):
        with pytest.raises(tuco.UsageError, match="the pair is closed"):
            use("a")
    with pytest.raises(tuco.UsageError, match="the pair is closed"):
        pair.vocab_size


def test_results_go_to_other_processes(demo):
    def same(one, other):
        np.testing.assert_equal(one, other)
        return True

    scores = demo.score(["Hello", ""], layers=True, all_tokens=True, output_co=True, errors="rows")
    read = pickle.loads(pickle.dumps(scores))
    assert list(read)[0] == list(scores)[0] and read.errors == scores.errors and read.to_arrow() == scores.to_arrow()
    with pytest.raises(tuco.UsageError, match="no scores"):
        tuco.Scores(b"not a stream")
    ((completion,),) = demo.generate("Hello", max_new_tokens=3, tuco=True)
    for result in (completion, demo.trace("Hello", response=" there")):
        copied = pickle.loads(pickle.dumps(result))
        names = [name for name in dir(type(result)) if not name.startswith("_")]
        assert len(names) >= 7 and all(same(getattr(copied, name), getattr(result, name)) for name in names)


def test_what_is_wrong_with_one_prompt_is_its_own(demo):
    given = ["Hello", None, [1, -1], [1, 99999], "b\ud800", float("nan"), ""]
    kinds = ["invalid_row", "token_out_of_range", "token_out_of_range", "invalid_utf8", "invalid_row", "empty_prompt"]
    scores = demo.score(given, errors="rows")
    assert [row["error"]["type"] for row in list(scores)[1:]] == kinds
    logits = demo.logits(given, [0, 1], tokens=[5, 6], errors="rows")
    assert logits.shape == (2, 7, 2) and np.isnan(logits[:, 1:]).all()
    np.testing.assert_equal(logits[:, 0], demo.logits("Hello", [0, 1], tokens=[5, 6])[:, 0])
    with pytest.raises(tuco.PromptError, match=r"prompts\[1\]: the prompt is null"):
        demo.logits(given)
    found = demo.likelihoods(["Hello"] * 3, [" there", "b\ud800", [5, -1]], errors="rows")
    assert [error.kind for error in found[1:]] == ["invalid_utf8", "token_out_of_range"]
    assert "its continuation" in str(found[1])


def test_a_prompt_that_is_cut_leaves_room_for_what_follows():
    with tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned", device="cpu", on_overlength="truncate-left") as pair:
        long = "word " * 2000
        ((completion,),) = pair.generate(long, max_new_tokens=20, ignore_eos=True)
        assert (len(completion.token_ids), completion.n_prompt, completion.truncated) == (20, 492, True)
        with pytest.warns(tuco.TucoWarning, match="1 of the prompts are longer"):
            ((values, _),) = pair.likelihoods([long], [[5, 6, 7]])
        assert len(values) == 3
        trace = pair.trace(long, response=" a b")
        assert len(trace.token_ids) == 512 and trace.truncated and trace.n_prompt < 512


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_logits_that_memory_does_not_hold_are_an_error(tmp_path):
    code = f"""
import resource
import tuco
pair = tuco.Pair.from_pretrained({str(DEMO / "base")!r}, {str(DEMO / "tuned")!r}, device="cpu", threads=1)
resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
try:
    pair.logits(["a"] * 1000, [alpha / 1000 for alpha in range(1000)])
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "no memory for 1000 × 1000 × 2048 logits" in done.stdout, done.stderr


def test_a_pair_is_not_pickled(demo):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(demo)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_open_its_own(tmp_path):
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
import tuco
pair = tuco.Pair.from_pretrained({str(DEMO / "base")!r}, {str(DEMO / "tuned")!r})
before = pair.score("Hello").tuco
child = os.fork()
if child == 0:
    try:
        pair.score("Hello")
    except tuco.UsageError as error:
        print(error, flush=True)
    del pair  # must not wait for threads that are not there
    own = tuco.Pair.from_pretrained({str(DEMO / "base")!r}, {str(DEMO / "tuned")!r})
    print(own.score("Hello").tuco == before, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert pair.score("Hello").tuco == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, same = done.stdout.splitlines()
    assert "threads do not survive a fork: open it in this process" in told and same == "[ True]"


def test_other_mistakes(demo):
    with pytest.raises(tuco.UsageError, match='errors is "ignore", expected "raise" or "rows"'):
        demo.score("a", errors="ignore")
    with pytest.raises(tuco.UsageError, match="unknown option \"devise\", expected one of base, tuned"):
        tuco._native.Pair([("devise", "cpu")])
    with pytest.raises(TypeError, match="expected one conversation"):
        demo.apply_chat_template("text")


def test_what_the_library_tells_is_a_warning(demo):
    with pytest.warns(tuco.TucoWarning, match="another: two in a row"):
        demo.score("<s>Hello")
