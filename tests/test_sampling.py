"""Which words are drawn, and how often, from a model whose prediction is known."""

from __future__ import annotations

import itertools
import math

import mxnet as mx
import numpy as np
import pytest

from noisin.sampling import sample_words

P = np.array([0.05, 0.4, 0.1, 0.3, 0.15])
DRAWS = 3000


class Constant:
    """A model that always predicts P."""

    def begin_state(self, batch_size, ctx):
        return []

    def __call__(self, tokens, states):
        return mx.nd.array(np.log(P)[None]), states


def frequencies(**options):
    ids = list(itertools.islice(sample_words(Constant(), [0], **options), DRAWS))
    return np.bincount(ids, minlength=len(P)) / DRAWS


@pytest.mark.parametrize(
    "options, kept, temperature",
    [
        ({}, [0, 1, 2, 3, 4], 1),
        ({"temperature": 2.0}, [0, 1, 2, 3, 4], 2),
        ({"top_k": 2}, [1, 3], 1),
        ({"top_k": 99}, [0, 1, 2, 3, 4], 1),
        ({"top_p": 0.69}, [1, 3], 1),
        ({"top_p": 0.71}, [1, 3, 4], 1),
        ({"top_p": 1e-9}, [1], 1),
        ({"top_p": 0.69, "temperature": 2.0}, [1, 3, 4], 2),  # of the distribution at that temperature
        ({"top_k": 3, "top_p": 0.8, "excluded": [1]}, [3, 4], 1),  # 0.82 of what is left of the three
        ({"excluded": [1, 3]}, [0, 2, 4], 1),
        ({"temperature": 0.0}, [1], 1),
    ],
)
def test_words_are_drawn_in_proportion_from_those_that_are_kept(options, kept, temperature, seed):
    expected = np.zeros(len(P))
    expected[kept] = P[kept] ** (1 / temperature)
    expected /= expected.sum()
    found = frequencies(seed=seed % 2**31, **options)
    assert (found[expected == 0] == 0).all()
    assert (np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / DRAWS)).all()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": math.nan}, "top_p is nan"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        next(sample_words(Constant(), [0], **options))
    with pytest.raises(ValueError, match="prompt is empty"):
        next(sample_words(Constant(), []))
