"""How likely continuations are."""

from __future__ import annotations

import numpy as np
import pytest

import tuco


def test_likelihoods_are_those_that_logits_say(demo):
    prompt, more = demo.encode(["The capital is"])[0], demo.encode_text(" Paris, of course")
    for alpha in (0.3, 1.0):
        ((values, greedy),) = demo.likelihoods([prompt], [more], alpha)
        assert values.dtype == np.float64 and greedy.dtype == np.bool_
        for place, token in enumerate(more):
            logits = demo.logits([np.concatenate([prompt, more[:place]])], alpha)[0]
            assert values[place] == pytest.approx(logits[token] - np.logaddexp.reduce(logits), abs=1e-5)
            assert greedy[place] == (logits.argmax() == token)
    ((as_text, _),) = demo.likelihoods("The capital is", [" Paris, of course"])
    np.testing.assert_array_equal(as_text, values)


def test_what_cannot_be_meant_is_told(demo):
    values, greedy = demo.likelihoods("a", [""])[0]
    assert values.shape == greedy.shape == (0,)
    with pytest.raises(TypeError, match="continuations has 1 items, expected one for each of 2 prompts"):
        demo.likelihoods(["a", "b"], [" c"])
    with pytest.raises(tuco.PromptError, match=r"prompts\[0\]: its continuation: token 0 has id 2048"):
        demo.likelihoods("a", [[2048]])
    with pytest.raises(tuco.PromptError, match=r"prompts\[1\]: its continuation: .* tokens with the prompt, expected at most 513") as raised:
        demo.likelihoods(["a", "b"], ["x", "y " * 600])
    assert (raised.value.index, raised.value.kind) == (1, "too_long")
    first, second, third = demo.likelihoods(["a", "b", ""], ["x", "y " * 600, "z"], errors="rows")
    assert (second.kind, third.kind) == ("too_long", "empty_prompt")
    np.testing.assert_array_equal(first[0], demo.likelihoods("a", ["x"])[0][0])
    with pytest.raises(tuco.UsageError, match="alpha is -1, expected a number from 0 on"):
        demo.likelihoods("a", ["b"], -1)
    with pytest.raises(TypeError, match=r"continuations\[0\] is list, expected a list or array of token ids"):
        demo.likelihoods("a", [[{"role": "user", "content": "b"}]])
    with pytest.raises(TypeError, match="continuations is no list, expected a list of text or token ids"):
        demo.likelihoods("a", " b")
    with pytest.raises(TypeError, match="tokens is int, expected a list or array of token ids"):
        demo.logits("a", tokens=15)
    with pytest.raises(tuco.UsageError, match="there is no alpha, expected one or more"):
        demo.logits("a", alpha=[])
