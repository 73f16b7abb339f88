"""Types of arguments and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Dict, Protocol, Union

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint32]


class ArrowArray(Protocol):
    """An array of pyarrow, polars, …, by the Arrow PyCapsule protocol."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...


class ArrowStream(Protocol):
    """The same in chunks."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Message = Dict[str, Any]
"""`role` and `content`, and whatever else the chat template reads."""
TokenIds = Union[Sequence[int], npt.NDArray[np.integer[Any]]]
Prompt = Union[str, Sequence[Message], TokenIds]
Prompts = Union[Prompt, Sequence[Prompt], ArrowArray, ArrowStream]
"""Text, a conversation, token ids, or a list, two-dimensional array or Arrow column of such."""
