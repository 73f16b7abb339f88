"""What can go wrong. The messages are those of the command line; `exit_code` is what it exits with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._native import Completion, Scores
    from .typing import Bools, Floats


class TucoWarning(UserWarning):
    """What the command line tells on standard error."""


class TucoError(Exception):
    """All errors of tuco."""

    exit_code = 1


class UsageError(TucoError, ValueError):
    """An option, path or argument that cannot be meant."""

    exit_code = 2


class PromptError(UsageError):
    """A prompt that cannot be used."""

    index: int
    """Which one, from 0."""
    kind: str
    """A stable name, `error.type` of `tuco score`: empty_prompt, too_long, token_out_of_range, template_error, …"""
    scores: Scores | None
    """The other prompts' scores, if they had been computed."""
    logits: Floats | None
    """The other prompts' logits, if they had been computed; NaN for one that has none."""
    likelihoods: list[tuple[Floats, Bools] | None] | None
    """The other prompts' likelihoods, if they had been computed; `None` for one that has none."""
    completions: list[list[Completion] | None] | None
    """The other prompts' completions, if they had been generated; `None` for one that has none."""

    def __init__(self, message: str, index: int = 0, kind: str = "invalid_row") -> None:
        super().__init__(message)
        self.index = index
        self.kind = kind
        self.exit_code = {"not_finite": 42, "out_of_memory": 1}.get(kind, 2)
        self.scores = None
        self.logits = None
        self.likelihoods = None
        self.completions = None

    def __reduce__(self) -> tuple[type, tuple[str, int, str], dict[str, object]]:
        return type(self), (str(self), self.index, self.kind), self.__dict__


class CheckpointError(TucoError, ValueError):
    """A checkpoint that is broken or of a kind that is not supported."""

    exit_code = 42


class MismatchError(TucoError, ValueError):
    """Two checkpoints that are not a pair, or outputs that do not belong together."""

    exit_code = 42


class NotFiniteError(TucoError, OverflowError):
    """Hidden states or logits overflowed: finite weights that are too large for a prompt. The same call fails again."""

    exit_code = 42


class CancelledError(TucoError):
    """Another thread stopped the call (`pair.cancel()`)."""

    exit_code = 75


class BadRowsError(TucoError):
    """More rows are errors than `fail_on_error` allows. All rows are written, and say why."""

    exit_code = 3


class IncompleteError(TucoError):
    """Rows that are to be merged are not all there."""

    exit_code = 3


class ReadWriteError(TucoError, OSError):
    """Reading or writing failed; it may work later."""


class DeviceError(TucoError, RuntimeError):
    """The device failed or is not there."""


class OutOfMemoryError(DeviceError, MemoryError):
    """The device's memory does not hold what is computed at once."""
