"""Files and datasets on a local Ray cluster."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

ray = pytest.importorskip("ray")

import ray.data
from conftest import DEMO, GOLDEN
from ray.data import ActorPoolStrategy

import tuco
import tuco.ray
from tuco.ray import files

# What Ray itself warns of.
pytestmark = pytest.mark.filterwarnings("default")

PAIR = {"base": str(DEMO / "base"), "tuned": str(DEMO / "tuned")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Workers import from the driver's directory, and the one that tests start in has the sources.
        patch.chdir(tmp_path_factory.mktemp("driver"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def prompts(tmp_path, rows) -> Path:
    """A file of prompts, an error among them."""
    path = tmp_path / "prompts.jsonl"
    broken = {"id": "broken", "prompt": ""}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:40], broken, *rows[40:]]))
    return path


def bytes_of_one_machine(command_line, prompts: Path, *flags: str) -> bytes:
    path = prompts.with_name("whole.jsonl")
    command_line("score", *(f"--{name}={value}" for name, value in PAIR.items()), *flags, str(prompts), "-o", str(path))
    return path.read_bytes()


def writers(path: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == str(path):
                found.append(int(descriptor.parts[2]))
        except OSError:
            pass
    return found


def complete_rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_shards_are_merged_to_the_bytes_of_one_machine(cluster, command_line, prompts, tmp_path):
    whole = bytes_of_one_machine(command_line, prompts, "--layers")
    output = tmp_path / "scores.jsonl"
    score = lambda: tuco.ray.score(prompts, output, **PAIR, num_shards=4, num_cpus=2, layers=True)  # noqa: E731
    # The same call finds all done.
    for _ in range(2):
        assert score() == str(output)
        assert output.read_bytes() == whole
    # The manifest keeps what was called, not the worker's own command line.
    manifest = json.loads(Path(f"{output}.shards/shard-00000-of-00004.jsonl.manifest.json").read_text())
    command = manifest["about"]["command"]
    assert command[:3] == ["tuco", "score", str(prompts)]
    assert {"--threads=2", "--device=cpu", "--layers", "--shard=0/4"} <= set(command)
    with pytest.raises(tuco.MismatchError, match="layers was true and is now false"):
        tuco.ray.score(prompts, output, **PAIR, num_shards=4)
    tuco.ray.score(prompts, output, **PAIR, num_shards=2, overwrite=True)
    assert "beta_per_layer" not in json.loads(output.read_text().splitlines()[0])


def test_a_killed_worker_loses_and_doubles_nothing(cluster, command_line, prompts, tmp_path):
    whole = bytes_of_one_machine(command_line, prompts)
    output = tmp_path / "scores.jsonl"
    # Small batches, so that there is a middle.
    options = {**PAIR, "num_shards": 2, "batch_size": 1}
    running = threading.Thread(target=tuco.ray.score, args=(prompts, output), kwargs=options)
    running.start()
    killed = []
    for index in range(2):
        path = tmp_path / f"scores.jsonl.shards/shard-{index:05}-of-00002.jsonl"
        while complete_rows(path) < 5:
            assert running.is_alive()
            time.sleep(0.002)
        pids = writers(path)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        rows = complete_rows(path)
        killed.append((len(pids), rows))
        # What was written stays.
        for _ in range(50):
            assert complete_rows(path) >= rows
            time.sleep(0.002)
    running.join()
    assert killed[0][0] == 1 and killed[0][1] >= 5, killed
    assert output.read_bytes() == whole


def test_when_a_shard_fails_the_others_stop_and_go_on_later(cluster, prompts, tmp_path):
    path = tmp_path / "out/shard-00000-of-00001.jsonl"

    def fail() -> None:
        while not path.exists() or path.read_bytes().count(b"\n") < 5:
            time.sleep(0.002)
        raise tuco.MismatchError("no pair")

    tasks = files._Tasks(1, 1, 0, max_retries=2, overwrite=False, progress=None, ray_remote_args={})
    words = ["score", str(prompts), *files._flags({**PAIR, "output": tmp_path / "out", "device": "cpu", "shard": "0/1"})]
    shard = tasks._remote(files._run, num_cpus=1).remote([*words, "--batch-size=1"])
    with pytest.raises(tuco.MismatchError, match="no pair"):
        files._wait([shard, tasks._remote(fail, num_cpus=1).remote()], lambda: None)
    rows = path.read_bytes()
    assert not writers(path) and rows.endswith(b"\n") and 5 <= rows.count(b"\n") < complete_rows(prompts)
    files._run(words)
    assert path.read_bytes().startswith(rows) and complete_rows(path) == complete_rows(prompts)


def test_completions_and_tables(cluster, command_line, prompts, tmp_path):
    options = {"max_new_tokens": 3, "alpha": 0.5, "stop": ["a", "."], "limit": 12}
    output = tuco.ray.generate(prompts, tmp_path / "completions.jsonl", **PAIR, num_shards=2, **options)
    flags = ["--max-new-tokens=3", "--alpha=0.5", "--stop=a", "--stop=.", "--limit=12"]
    expected = command_line("generate", *(f"--{name}={value}" for name, value in PAIR.items()), *flags, str(prompts))
    assert [json.loads(line) for line in Path(output).read_text().splitlines()] == expected

    table = tuco.ray.score([prompts], tmp_path / "scores.parquet", **PAIR, num_shards=2, limit=12)
    assert pa.parquet.read_table(table).num_rows == 12


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (tuco.UsageError("wrong"), 1),
        (tuco.MismatchError("no pair"), 1),
        (tuco.BadRowsError("bad"), 1),
        (tuco.ReadWriteError("full"), 3),
    ],
)
def test_only_what_may_work_later_is_tried_again(cluster, tmp_path, error, attempts):
    def fail() -> None:
        with open(tmp_path / "attempts", "a") as file:
            file.write("1")
        raise error

    tasks = files._Tasks(1, 1, 0, max_retries=2, overwrite=False, progress=None, ray_remote_args={})
    with pytest.raises(type(error), match=str(error)):
        files._get(tasks._remote(fail, num_cpus=0).remote())
    assert len((tmp_path / "attempts").read_text()) == attempts


def test_a_shard_that_another_process_writes_is_waited_for(cluster, prompts, tmp_path):
    shards = tmp_path / "scores.jsonl.shards"
    shards.mkdir()
    path = shards / "shard-00000-of-00001.jsonl"
    with open(path, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        failing = lambda: tuco.ray.score(prompts, tmp_path / "scores.jsonl", **PAIR, num_shards=1, max_retries=0)  # noqa: E731
        with pytest.raises(tuco.ReadWriteError, match="is being written by another process"):
            failing()
        options = {**PAIR, "num_shards": 1, "limit": 3}
        running = threading.Thread(target=tuco.ray.score, args=(prompts, tmp_path / "scores.jsonl"), kwargs=options)
        running.start()
        time.sleep(1)
    running.join()
    assert complete_rows(tmp_path / "scores.jsonl") == 3


def test_too_many_bad_rows_are_told_when_all_is_there(cluster, prompts, tmp_path):
    output = tmp_path / "scores.jsonl"
    with pytest.raises(tuco.BadRowsError, match=r"has all rows, but 1 of 2 shards .* 1 of \d+ rows are errors") as raised:
        tuco.ray.score(prompts, output, **PAIR, num_shards=2, fail_on_error=0)
    assert raised.value.exit_code == 3
    assert complete_rows(output) == complete_rows(prompts)


def test_what_cannot_be_meant_is_refused(cluster, prompts, tmp_path):
    output = tmp_path / "scores.jsonl"

    def refused(match: str, kind: type[Exception] = tuco.UsageError, **more: object) -> None:
        call = {"input": prompts, "output": output, **PAIR, "num_shards": 2, **more}
        with pytest.raises(kind, match=match):
            tuco.ray.score(**call)

    refused("num_shards is 0, expected a number from 1 on", num_shards=0)
    refused("input is -, expected files", input="-")
    refused("unexpected argument '--layer' found", layer=True)
    refused("--shard.* cannot be used multiple times", shard="0/2")
    refused("expected auto, cpu", device="gpu")
    refused("threads is list|expected 1 to 4096", threads=0)
    refused("cannot read .*absent.jsonl", input=tmp_path / "absent.jsonl")
    refused("adapter is object, expected str or a path", TypeError, adapter=object())
    refused("is a directory, expected a file", output=tmp_path)
    refused("not a pair: model_type is gemma", tuco.MismatchError, base=GOLDEN / "gemma/base", tuned=GOLDEN / "qwen2/tuned")
    assert not list(tmp_path.glob("*.shards/*.jsonl"))
    output.write_text("precious\n")
    refused("is there already; overwrite=True replaces it")
    assert output.read_text() == "precious\n"


@pytest.fixture(scope="module")
def dataset_rows(rows) -> list[dict]:
    """Texts with a number, one that cannot be scored among them."""
    texts = [row["prompt"] for row in rows if "prompt" in row][:20]
    texts[7] = ""
    return [{"number": number, "prompt": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas"])
def test_a_dataset_is_scored_by_actors(cluster, demo, dataset_rows, batch_format):
    expected = demo.score([row["prompt"] for row in dataset_rows], layers=True, errors="rows")
    scored = ray.data.from_items(dataset_rows).map_batches(
        tuco.ray.Scorer,
        fn_constructor_kwargs={**PAIR, "layers": True},
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
        batch_size=6,
        batch_format=batch_format,
    )
    found = sorted(scored.take_all(), key=lambda row: row["number"])
    assert len(found) == len(dataset_rows)
    for row, given in zip(found, dataset_rows):
        number = given["number"]
        assert row["prompt"] == given["prompt"]
        if number == 7:
            assert row["error"]["type"] == "empty_prompt" and row["error"]["message"]
            assert row["tuco"] is None or np.isnan(row["tuco"])
            continue
        assert row["error"] is None
        assert row["tuco"] == expected.tuco[number] and row["n_tokens"] == expected.n_tokens[number]
        assert list(row["beta_per_layer"]) == list(expected.beta_per_layer[number])


def test_batches_of_all_kinds_of_prompts(cluster, demo):
    class Here:
        """A scorer in this process."""

        def __new__(cls, **options):
            scorer = object.__new__(tuco.ray.Scorer)
            scorer.pair, scorer.column, scorer.layers, scorer.output_co = demo, options.get("column"), False, False
            return scorer

    messages = [[{"role": "user", "content": "Hello!"}], [{"role": "user", "content": "Who?"}]]
    expected = demo.score(messages).tuco.tolist()
    assert Here()({"messages": np.array([*messages, None], dtype=object)[:2]})["tuco"].tolist() == expected
    assert Here()(pa.table({"messages": messages}))["tuco"].to_pylist() == expected
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    expected = demo.score(ids).tuco.tolist()
    assert Here()({"token_ids": ids})["tuco"].tolist() == expected
    assert Here(column="x")({"x": ids, "prompt": np.array(["a", "b"])})["tuco"].tolist() == expected
    nothing = Here()({"prompt": np.array([None, None])})
    assert [error["type"] for error in nothing["error"]] == ["invalid_row"] * 2
    assert Here()(pa.table({"prompt": pa.array([], pa.string())})).num_rows == 0
    with pytest.raises(tuco.UsageError, match="has columns text; expected one of messages, prompt, token_ids"):
        Here()({"text": np.array(["a"])})
    with pytest.raises(tuco.UsageError, match="scores would replace: tuco"):
        Here()({"prompt": np.array(["a"]), "tuco": np.array([1.0])})


def test_without_ray_it_says_what_to_install():
    program = "import sys; sys.modules['ray'] = None; import tuco.ray"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: tuco.ray needs Ray: pip install 'ray[data]'"
