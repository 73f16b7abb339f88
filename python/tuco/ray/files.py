"""Files: a task for each shard."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import ray
from ray.exceptions import RayTaskError

from .. import _native
from ..errors import BadRowsError, DeviceError, ReadWriteError, UsageError
from ..pair import Path, option_text
from .resources import options_of

_MAY_WORK_LATER = (ReadWriteError, DeviceError)
"""What the command line tells by exit code 1."""

_PAUSE = 1.0
"""Seconds before that is tried again."""

_STOPPING = 60.0
"""Seconds that shards have to write what is computed when they are stopped: they end after the layer that is at work."""


def score(
    input: Path | Sequence[Path],
    output: Path,
    base: Path | None = None,
    tuned: Path | None = None,
    adapter: Path | None = None,
    *,
    num_shards: int,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_retries: int = 10,
    overwrite: bool = False,
    progress: bool | None = None,
    ray_remote_args: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    """Scores files as `tuco score` does, each shard as a task of its own, and merges the shards.

    Rows are on the disk as soon as their batch is done, in the folder `OUTPUT.shards`. A task whose worker was killed is run again and
    goes on where it stopped; so does the same call after the program itself was stopped. The output has the bytes that one machine
    would have written; the folder may be removed when it is there.

    Args:
        input: one file or several: JSONL, Parquet, CSV or text.
        output: a file of JSON lines, or OUT.parquet.
        base: see `Pair.from_pretrained`.
        tuned: the same.
        adapter: the same.
        num_shards: how many parts. More than run at a time, so that all machines have work to the end.
        num_cpus: of each task, and its threads if `threads` does not say otherwise.
        num_gpus: of each task, and its devices if `device` does not say otherwise.
        max_retries: how often a shard is tried again whose worker was killed, or whose reading, writing or device failed; -1: without
            end. Wrong usage, broken checkpoints, what is no pair, and outputs of other runs are not tried again.
        overwrite: start again even if there are rows.
        progress: show a tqdm bar over shards, and nothing of what the tasks say; default: in a terminal, if tqdm is installed.
        ray_remote_args: more arguments of `ray.remote` for the tasks, such as `memory` or `scheduling_strategy`.
        options: the other flags of `tuco score`, as `Pair.from_pretrained` takes them: `layers=True`, `limit=1000`, … Environment
            variables (`TUCO_…`) are not read.

    Returns:
        the path of the output.

    Raises:
        BadRowsError: a shard has more bad rows than `fail_on_error` allows. The output has all rows nevertheless.
        TucoError: what ended a shard; the others are stopped, and what is written stays.
    """
    return _sharded("score", **locals())


def generate(
    input: Path | Sequence[Path],
    output: Path,
    base: Path | None = None,
    tuned: Path | None = None,
    adapter: Path | None = None,
    *,
    num_shards: int,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_retries: int = 10,
    overwrite: bool = False,
    progress: bool | None = None,
    ray_remote_args: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    """Completes the prompts of files as `tuco generate` does: `generate(…, alpha=0.5, max_new_tokens=50)`; all else as `score`."""
    return _sharded("generate", **locals())


def _sharded(command: str, input: Any, output: Path, base: Any, tuned: Any, adapter: Any, options: dict[str, Any], **spread: Any) -> str:
    """Runs a command with the arguments of `score`."""
    return _Tasks(**spread).run(command, input, output, {"base": base, "tuned": tuned, "adapter": adapter, **options})


@dataclass(frozen=True)
class _Tasks:
    """How a run is spread over the cluster."""

    num_shards: int
    num_cpus: float
    num_gpus: float
    max_retries: int
    overwrite: bool
    progress: bool | None
    ray_remote_args: dict[str, Any] | None

    def run(self, command: str, input: Path | Sequence[Path], output: Path, options: dict[str, Any]) -> str:
        if not isinstance(self.num_shards, int) or self.num_shards < 1:
            raise UsageError(f"num_shards is {self.num_shards!r}, expected a number from 1 on")
        inputs = [input] if isinstance(input, (str, os.PathLike)) else list(input)
        if "-" in inputs:
            raise UsageError("input is -, expected files: every shard reads them")
        # Tasks may run in other directories.
        inputs = [os.path.abspath(path) for path in inputs]
        output = os.path.abspath(output)
        folder = f"{output}.shards"
        words = [command, *inputs, f"--output={folder}", *_flags({**options_of(self.num_cpus, self.num_gpus), **options})]

        once = self._remote(_prepare, num_cpus=0)
        _get(once.remote(output, folder, self.overwrite))
        shard = self._remote(_run, num_cpus=self.num_cpus, num_gpus=self.num_gpus)
        with _bar(self.progress, self.num_shards) as bar:
            if self.progress is False or bar.shown:
                words.append("--quiet")
            tasks = [
                shard.options(name=f"tuco {command} {index}/{self.num_shards}").remote(
                    [*words, f"--shard={index}/{self.num_shards}"]
                )
                for index in range(self.num_shards)
            ]
            bad = _wait(tasks, bar.update)
        merge = self._remote(_run, num_cpus=0)
        _get(merge.remote(["merge", folder, f"--output={output}", "--overwrite", "--quiet"]))
        if bad:
            shards = f"{len(bad)} of {self.num_shards} shards"
            raise BadRowsError(f"{output} has all rows, but {shards} have too many that are errors, the first: {bad[0]}")
        return output

    def _remote(self, function: Callable[..., None], **resources: float) -> Any:
        retries = {"max_retries": self.max_retries, "retry_exceptions": list(_MAY_WORK_LATER)}
        return ray.remote(**{**resources, **retries, **(self.ray_remote_args or {})})(function)


def _prepare(output: str, folder: str, overwrite: bool) -> None:
    """Where the files are: sees to it that nothing is computed which could not be written."""
    if os.path.isdir(output):
        raise UsageError(f"output {output} is a directory, expected a file")
    shards = glob.glob(os.path.join(glob.escape(folder), "shard-*-of-*.jsonl*"))
    if overwrite:
        for path in shards:
            os.remove(path)
    elif os.path.exists(output) and not shards:
        raise UsageError(f"output {output} is there already; overwrite=True replaces it")


def _run(words: list[str]) -> None:
    """A command line of `tuco` in a worker."""
    try:
        _native.run(words)
    except _MAY_WORK_LATER:
        time.sleep(_PAUSE)
        raise


def _wait(tasks: list[Any], told: Callable[[], Any]) -> list[BadRowsError]:
    """Waits for all shards, or for the first that fails; returns what those with too many bad rows say."""
    bad, waiting = [], tasks
    try:
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                _get(done)
            except BadRowsError as error:
                bad.append(error)
            told()
    finally:
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting), timeout=_STOPPING)
    return bad


def _get(task: Any) -> None:
    """Waits for a task; what it raised is raised as it was, not wrapped."""
    try:
        ray.get(task)
    except RayTaskError as error:
        raise error.cause from None


class _Bar:
    """A tqdm bar, or none."""

    def __init__(self, tqdm: Any = None) -> None:
        self.tqdm = tqdm
        self.shown = tqdm is not None and not tqdm.disable

    def update(self) -> None:
        if self.tqdm is not None:
            self.tqdm.update()


@contextlib.contextmanager
def _bar(progress: bool | None, total: int) -> Iterator[_Bar]:
    """As of `Pair.score`: True shows a bar, False none, None in a terminal where tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            raise
        progress = False
    if progress is False:
        yield _Bar()
        return
    with tqdm(total=total, desc="shards", unit="shard", disable=None if progress is None else False) as bar:
        yield _Bar(bar)


def _flags(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if each is None or each is False:
                continue
            flag = f"--{name.replace('_', '-')}"
            yield flag if each is True else f"{flag}={_word(name, each)}"


def _word(name: str, value: object) -> str:
    if isinstance(value, (int, float)):
        return str(value)
    text = option_text(name, value)
    # Tasks may run in other directories; what is no path may be a Hugging Face id.
    is_model = name in ("base", "tuned", "adapter", "base_adapter", "tokenizer")
    return os.path.abspath(text) if is_model and os.path.exists(text) else text
