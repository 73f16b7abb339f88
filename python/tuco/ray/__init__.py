"""Scores on a Ray cluster: files by one task a shard, datasets by an actor.

    tuco.ray.score("prompts.jsonl", "scores.jsonl", "base", "tuned", num_shards=16, num_cpus=8)
    dataset.map_batches(tuco.ray.Scorer, fn_constructor_args=("base", "tuned"), compute=ActorPoolStrategy(size=4), num_cpus=8)

Every machine needs this package, and sees models, inputs and outputs by the same paths.
"""

try:
    import ray as _ray  # noqa: F401
except ImportError as _missing:
    raise ImportError("tuco.ray needs Ray: pip install 'ray[data]'") from _missing

from .files import generate, score
from .scorer import Scorer

__all__ = ["Scorer", "generate", "score"]
