"""Types of arguments and results."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Protocol, Sequence, Union

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
Prompts = Union[
    str,
    npt.NDArray[Any],
    Iterable[Union[str, int, Message, Sequence[Union[Message, int]], npt.NDArray[np.integer[Any]]]],
    ArrowArray,
    ArrowStream,
]
"""Text, a conversation, token ids, or an iterable, two-dimensional array or Arrow column of such. One flat union: what a list holds is
not inferred through nested ones."""
