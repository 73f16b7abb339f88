"""TuCo: the Tuning Contribution of a fine-tuned language model (Nuti, Franzmeyer, Henriques, arXiv 2506.23423).

>>> import tuco
>>> with tuco.Pair.from_pretrained("models/demo/base", "models/demo/tuned") as pair:
...     scores = pair.score(["What is the capital of France?"])
>>> scores.tuco.shape
(1,)
"""

from ._native import Completion, Scores, Trace, __version__
from .errors import (
    BadRowsError,
    CancelledError,
    CheckpointError,
    DeviceError,
    IncompleteError,
    MismatchError,
    NotFiniteError,
    OutOfMemoryError,
    PromptError,
    ReadWriteError,
    TucoError,
    TucoWarning,
    UsageError,
)
from .pair import Pair

__all__ = [
    "BadRowsError",
    "CancelledError",
    "CheckpointError",
    "Completion",
    "DeviceError",
    "IncompleteError",
    "MismatchError",
    "NotFiniteError",
    "OutOfMemoryError",
    "Pair",
    "PromptError",
    "ReadWriteError",
    "Scores",
    "Trace",
    "TucoError",
    "TucoWarning",
    "UsageError",
    "__version__",
]
