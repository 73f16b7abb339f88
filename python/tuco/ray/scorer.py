"""Datasets: an actor that scores their batches."""

from __future__ import annotations

from typing import Any

import ray

from ..errors import UsageError
from ..pair import Pair, Path
from .resources import options_of

_PROMPTS = ("messages", "prompt", "token_ids")
"""Columns that hold prompts if no other is named."""


class Scorer:
    """Scores the batches of a `ray.data.Dataset`; each actor opens the pair once.

        dataset.map_batches(
            tuco.ray.Scorer,
            fn_constructor_kwargs={"base": …, "tuned": …},
            compute=ray.data.ActorPoolStrategy(size=4),
            num_cpus=8,
            batch_size=1024,
        )

    A batch (`pyarrow.Table`, dict of numpy arrays or pandas) comes back with the columns of `tuco.Scores` added: `tuco`, `ptc_l1`,
    `ftc_l1`, `beta`, `n_tokens`, `truncated`, and `error`, a struct of `type` and `message` where a row could not be scored.

    Args:
        base: see `Pair.from_pretrained`, as for all that is not named here. `threads` and `device` are by default what the actor was given
            (`num_cpus`, `num_gpus`).
        tuned: the same.
        adapter: the same.
        column: the column of prompts; default: the one of `messages`, `prompt` and `token_ids` that there is.
        layers: add `beta_per_layer`.
        output_co: add `output_co`.
    """

    def __init__(
        self,
        base: Path | None = None,
        tuned: Path | None = None,
        adapter: Path | None = None,
        *,
        column: str | None = None,
        layers: bool = False,
        output_co: bool = False,
        **options: Any,
    ) -> None:
        given = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        machine = options_of(given.get("CPU", 1), given.get("GPU", 0))
        self.pair = Pair.from_pretrained(base, tuned, adapter, **{**machine, **options})
        self.column = column
        self.layers = layers
        self.output_co = output_co

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        is_table = isinstance(batch, pa.Table)
        names = list(batch.column_names if is_table else batch.keys())
        prompts = _arrow(batch[self._column(names)])
        scores = self.pair.score(prompts, self.layers, output_co=self.output_co, errors="rows", progress=False)
        table = scores.to_arrow()
        twice = [name for name in table.column_names if name in names]
        if twice:
            raise UsageError(f"the batch has columns that scores would replace: {', '.join(twice)}; rename or drop them")
        if is_table:
            for name in table.column_names:
                batch = batch.append_column(table.schema.field(name), table[name])
            return batch
        arrays = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        if isinstance(batch, dict):
            if self.layers:
                arrays["beta_per_layer"] = scores.beta_per_layer
            return {**batch, **arrays}
        return batch.assign(**arrays)

    def _column(self, names: list[str]) -> str:
        found = [name for name in names if (name in _PROMPTS if self.column is None else name == self.column)]
        if len(found) == 1:
            return found[0]
        expected = f"one of {', '.join(_PROMPTS)}" if self.column is None else self.column
        raise UsageError(f"the batch has columns {', '.join(map(str, names))}; expected {expected}, or column=… to name another")


def _arrow(prompts: Any) -> Any:
    """A column that may have nulls, or two-dimensional token ids as they are."""
    import pyarrow as pa

    if getattr(prompts, "ndim", 1) == 2:
        return prompts
    if not isinstance(prompts, (pa.Array, pa.ChunkedArray)):
        prompts = pa.array(prompts)
    # Nothing but nulls, or no row at all.
    return prompts.cast(pa.string()) if pa.types.is_null(prompts.type) else prompts
