"""The embedded corpus: a seeded Markov source whose entropy rate is known exactly.

It needs no file and no network, and no model can have a perplexity below ``exp(entropy_rate)`` on it (but for the
sampling error of a finite split), so a table or a figure made with it can show how far a model is from the best
possible one. See docs/formats.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, List

import numpy as np

# Raise the version whenever anything below changes the text: it enters the digest, and so every run's identity.
VERSION = 1
TOKENS = {"train": 25_000, "valid": 10_000, "test": 10_000}  # tokens, to which the rest of the last line is added

UNKNOWN, END = 0, 1  # the states of <unk> and <eos>; the others are words in the order of their Zipf rank
TYPES = 240
RANK = 8  # the structure is of low rank, so that a network of 64 units can learn it rather than memorise it
STRENGTH = 0.9  # how much a token says about the next: 0 would make all tokens independent
ZIPF_SHIFT = 2.7  # Mandelbrot's shift of the rank in frequency ~ 1 / (rank + shift)
SEED = 2018


@dataclass(frozen=True)
class MarkovSource:
    """A stationary first-order Markov chain over the types of a vocabulary.

    Parameters
    ----------
    types : list of str
        The K types; the first two are ``<unk>`` and ``<eos>``.
    transition : np.ndarray, shape (K, K)
        ``transition[i, j]`` is the probability of type j after type i; every entry is positive.
    """

    types: List[str]
    transition: np.ndarray

    @property
    def stationary(self) -> np.ndarray:
        """The distribution pi with pi P = pi, of shape (K,)."""
        size = len(self.types)
        # One of the K balance equations follows from the others; the sum to one takes its place.
        equations = self.transition.T - np.eye(size)
        equations[-1] = 1.0
        return np.linalg.solve(equations, np.eye(size)[-1])

    @property
    def entropy_rate(self) -> float:
        """The entropy of the next token given the past, -sum_i pi_i sum_j P_ij log P_ij, in nats a token."""
        return float(-(self.stationary @ (self.transition * np.log(self.transition)).sum(axis=1)))

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Score each token as the source itself would.

        Parameters
        ----------
        tokens : np.ndarray, shape (N,)
            Token ids; an ``<eos>`` is understood before the first.

        Returns
        -------
        np.ndarray, shape (N,)
            log P(token | the token before it), in nats.
        """
        previous = np.concatenate([[END], tokens[:-1]])
        return np.log(self.transition[previous, tokens])

    def sample(self, size: int, random: np.random.RandomState) -> np.ndarray:
        """Draw a text that begins a line and ends one.

        Parameters
        ----------
        size : int
            Tokens before the last line is completed.
        random : np.random.RandomState
            Where the randomness comes from (numpy promises its stream never to change, unlike Generator's).

        Returns
        -------
        np.ndarray, shape (N,), int32
            Token ids, N >= size, the last of them ``<eos>``.
        """
        cumulative = self.transition.cumsum(axis=1)
        cumulative[:, -1] = 1.0  # rounding must not leave a gap above the last type
        tokens = [END]
        while len(tokens) <= size or tokens[-1] != END:
            tokens.append(int(cumulative[tokens[-1]].searchsorted(random.random_sample(), side="right")))
        return np.array(tokens[1:], dtype=np.int32)


@lru_cache(maxsize=1)
def source() -> MarkovSource:
    """Build the source of the embedded corpus.

    log P_ij = log zipf_j + strength * <u_i, v_j> + constant_i, with standard normal vectors u and v: frequencies are
    close to Zipf's law, and what a token says about the next is a log-bilinear map of low rank, the form an
    embedding and a softmax layer can learn.

    Returns
    -------
    MarkovSource
        The same one at every call.
    """
    random = np.random.RandomState(SEED)
    before = random.standard_normal((TYPES, RANK))
    after = random.standard_normal((TYPES, RANK))
    logits = STRENGTH * before @ after.T - np.log(np.arange(TYPES) + ZIPF_SHIFT)
    transition = np.exp(logits)
    transition /= transition.sum(axis=1, keepdims=True)
    return MarkovSource(["<unk>", "<eos>"] + _words(TYPES - 2, random), transition)


def splits() -> Dict[str, np.ndarray]:
    """Draw the splits of the embedded corpus.

    Returns
    -------
    dict of str to np.ndarray
        Token ids, int32, for ``train``, ``valid`` and ``test``; the same at every call.
    """
    random = np.random.RandomState(SEED + 1)
    return {split: source().sample(size, random) for split, size in TOKENS.items()}


def _words(count: int, random: np.random.RandomState) -> List[str]:
    """Make up pronounceable words, the first (most frequent) of one syllable and the others of two."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    pairs = [first + second for first in syllables for second in syllables if first != second]
    short = [syllables[i] for i in random.permutation(len(syllables))]
    long = [pairs[i] for i in random.permutation(len(pairs))]
    return (short + long)[:count]
