"""Logits under alpha, and traces."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import GOLDEN

import tuco


def test_logits_are_those_of_transformers_with_hooks():
    gold = json.loads((GOLDEN / "steering.json").read_text())["cases"]["llama_gqa_tied_bf16"]
    alphas = [float(alpha) for alpha in gold[0]["alphas"]]
    case = GOLDEN / "llama_gqa_tied_bf16"
    with tuco.Pair.from_pretrained(case / "base", case / "tuned", device="cpu") as pair:
        logits = pair.logits([prompt["token_ids"] for prompt in gold], alphas)
        traces = [pair.trace([prompt["token_ids"]]) for prompt in gold]
    assert logits.shape[:2] == (len(alphas), len(gold))
    for found, name in zip(logits, gold[0]["alphas"]):
        for row, prompt in zip(found, gold):
            expected = prompt["alphas"][name]
            size = len(expected["logits"])
            np.testing.assert_allclose(row[:size], expected["logits"], atol=1e-5 * expected["largest"], rtol=0)
    for trace, prompt in zip(traces, gold):
        np.testing.assert_allclose(trace.tuco, prompt["tuco_per_token"], rtol=1e-5)


def test_alpha_is_a_number_or_a_list(demo):
    prompts = ["Hello there", "a"]
    both = demo.logits(prompts, [1.0, 0.5])
    assert both.shape == (2, 2, demo.vocab_size) and both.dtype == np.float64
    np.testing.assert_array_equal(demo.logits(prompts), both[0])
    np.testing.assert_array_equal(demo.logits(prompts, alpha=1), both[0])
    np.testing.assert_array_equal(demo.logits(prompts, alpha=np.array([0.5]))[0], both[1])
    some = demo.logits(prompts, [1.0, 0.5], tokens=np.array([9, 3]))
    np.testing.assert_allclose(some, both[:, :, [9, 3]], atol=1e-4)
    assert demo.logits(prompts, tokens=[]).shape == (2, 0)
    for wrong in (-0.5, float("nan"), [1, -1]):
        with pytest.raises(tuco.UsageError, match="alpha is .*expected a number from 0 on"):
            demo.logits(prompts, alpha=wrong)
    with pytest.raises(TypeError, match="alpha must be a number"):
        demo.logits(prompts, alpha="one")
    with pytest.raises(tuco.UsageError, match="tokens: token 0 has id 2048"):
        demo.logits(prompts, tokens=[2048])


def test_a_trace_has_arrays_by_token_and_layer(demo):
    trace = demo.trace([{"role": "user", "content": "What is a dog?"}], response=" A dog")
    tokens, layers = len(trace.token_ids), demo.num_hidden_layers
    prompt = demo.encode([[{"role": "user", "content": "What is a dog?"}]])[0]
    assert trace.n_prompt == len(prompt) < tokens
    assert demo.decode(trace.token_ids).endswith(" A dog") and "".join(trace.tokens).endswith(" A dog")
    for table in (trace.beta_per_layer, trace.attention_per_layer, trace.mlp_per_layer, trace.ptc_l1, trace.ftc_l1):
        assert table.shape == (tokens, layers) and np.isfinite(table).all()
    np.testing.assert_array_equal(trace.tuco, trace.beta_per_layer[:, -1])
    np.testing.assert_allclose(trace.beta_per_layer, trace.ftc_l1 / (trace.ptc_l1 + trace.ftc_l1), rtol=1e-15)
    assert trace.pt_logits.shape == trace.ft_logits.shape == (demo.vocab_size,)
    special = demo.decode(trace.token_ids)
    assert special != demo.decode(trace.token_ids, skip_special_tokens=True) and special.startswith("<s>")
    with pytest.raises(TypeError, match="trace takes one prompt, found 2"):
        demo.trace(["a", "b"])
    with pytest.raises(tuco.UsageError, match="response"):
        demo.trace("a", response="")


def test_an_overflow_is_an_error_of_its_prompt(overflowing):
    prompts = [[1, 3], [1, 5, 3]]
    told = r"prompts\[1\]: the logits under alpha 1 are not numbers"
    with pytest.raises(tuco.PromptError, match=told) as raised:
        overflowing.logits(prompts, [0.0, 1.0])
    assert (raised.value.index, raised.value.kind, raised.value.exit_code) == (1, "not_finite", 42)
    assert np.isfinite(raised.value.logits).all(axis=2).tolist() == [[True, False], [True, False]]
    np.testing.assert_array_equal(raised.value.logits[:, 0], overflowing.logits(prompts[:1], [0.0, 1.0])[:, 0])
    assert np.isfinite(overflowing.logits(prompts, 0.0)).all()
    with pytest.raises(tuco.PromptError, match=told) as raised:
        overflowing.likelihoods([[1], [1, 5]], [[3], [3]])
    (first, greedy), second = raised.value.likelihoods
    assert second is None and first.shape == greedy.shape == (1,) and np.isfinite(first).all()
    with pytest.raises(tuco.errors.NotFiniteError, match="the hidden state overflowed") as raised:
        overflowing.trace([1, 5, 3])
    assert raised.value.exit_code == 42 and isinstance(raised.value, OverflowError)
