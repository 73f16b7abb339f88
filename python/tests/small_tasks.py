"""Tasks for lm-evaluation-harness on the demo pair, and what the harness's own `hf` model makes of them.

`python small_tasks.py > hf.json` (with torch, transformers and lm_eval) writes what test_lm_eval.py expects.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parents[2] / "models/demo"
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Russia": "Moscow",
    "China": "Beijing",
    "Cuba": "Havana",
}


def _documents() -> list[dict[str, Any]]:
    cities = list(CAPITALS.values())
    others = [[city, *(cities[(place + step) % len(cities)] for step in (1, 3, 6))] for place, city in enumerate(cities)]
    return [{"country": country, "cities": of} for country, of in zip(CAPITALS, others)]


def _texts() -> list[dict[str, str]]:
    lines = [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text().splitlines()]
    texts = [row["prompt"] for row in lines if "prompt" in row]
    # The last one is longer than the model's context.
    return [{"text": text} for text in [*texts[:4], " ".join(texts[:30])]]


def _split(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


TASKS: list[dict[str, Any]] = [
    {
        "task": "capitals",
        "custom_dataset": lambda **_: _split(_documents()),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "What is the capital of {{country}}? The capital is",
        "doc_to_choice": "{{cities}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    {
        "task": "running_text",
        "custom_dataset": lambda **_: _split(_texts()),
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    {
        "task": "answers",
        "custom_dataset": lambda **_: _split(_documents()),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "What is the capital of {{country}}?",
        "doc_to_target": "{{cities[0]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
]


def evaluated(model: Any, **options: Any) -> dict[str, Any]:
    """Metrics of each task, and the model's responses to each document."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    found = lm_eval.simple_evaluate(
        model, tasks=[ConfigurableTask(config=dict(task)) for task in TASKS], bootstrap_iters=0, torch_random_seed=None, **options
    )
    assert found is not None
    outcome = {}
    for task in (task["task"] for task in TASKS):
        metrics = {name: value for name, value in found["results"][task].items() if isinstance(value, float) and "stderr" not in name}
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        outcome[task] = {"metrics": metrics, "responses": [[response[0] for response in sample["resps"]] for sample in samples]}
    return outcome


if __name__ == "__main__":
    arguments = {"pretrained": str(DEMO / "tuned"), "dtype": "float32", "device": "cpu"}
    versions = {name: version(name) for name in ("lm_eval", "transformers", "torch")}
    print(json.dumps({"versions": versions, **evaluated("hf", model_args=arguments, batch_size=1)}))
