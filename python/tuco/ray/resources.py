"""What Ray gives a task or an actor, as options of a pair."""

from __future__ import annotations


def options_of(num_cpus: float, num_gpus: float) -> dict[str, object]:
    """`threads` and `device`; GPUs that were given are all that it sees."""
    gpus = ",".join(str(ordinal) for ordinal in range(max(1, int(num_gpus))))
    return {"threads": max(1, int(num_cpus)), "device": f"cuda:{gpus}" if num_gpus else "cpu"}
