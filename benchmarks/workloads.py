"""The workloads: training steps in the settings of the paper's two corpora, on random words of as many types.

This module does not import noisin, whose settings of threads and memory the peers must not get.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Tuple

import numpy as np


class Weights(NamedTuple):
    """What every contender starts from, all uniform in (-0.1, 0.1).

    `layers` has for each layer the weights of its input and state (gates * hidden, hidden), and the bias of each
    (gates * hidden,); the gates of an LSTM are input, forget, cell, output.
    """

    embedding: np.ndarray
    layers: List[Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    decoder: np.ndarray
    decoder_bias: np.ndarray

    def in_order(self) -> List[np.ndarray]:
        """Return all arrays, from the words up."""
        return [self.embedding, *(array for layer in self.layers for array in layer), self.decoder, self.decoder_bias]


@dataclass(frozen=True)
class Workload:
    """A setting whose training steps are timed.

    Parameters
    ----------
    name : str
    cell : {'rnn', 'lstm'}
        The RNN has tanh, which every peer has.
    layers : int
    hidden : int
        Units per layer.
    vocabulary : int
        Number of word types.
    optimizer : {'adam', 'sgd'}
    learning_rate : float
    batch_size : int, default 32
        Sequences per batch.
    unroll : int, default 35
        Steps per batch.
    samples : int, default 1
        S, noise trajectories of NOISIN.
    particles : int, default 1
        Trajectories of the particle filter.
    gamma : float, default 0.2
        Spread of every noisy contender. Its value does not change the cost; with 0 all contenders do the same work.
    """

    name: str
    cell: str
    layers: int
    hidden: int
    vocabulary: int
    optimizer: str
    learning_rate: float
    batch_size: int = 32
    unroll: int = 35
    samples: int = 1
    particles: int = 1
    gamma: float = 0.2

    @property
    def words(self) -> int:
        """Words that one training step predicts."""
        return self.batch_size * self.unroll

    @property
    def gates(self) -> int:
        """Number of blocks of `hidden` rows in a cell's weights."""
        return 4 if self.cell == "lstm" else 1

    def changed(self, change: Mapping[str, Any]) -> Workload:
        """Return the workload with some of its numbers replaced, by name."""
        return replace(self, **change)

    def tokens(self) -> np.ndarray:
        """Return the ids of a random text of 50 training steps, with Zipf's word frequencies."""
        ranks = np.arange(1, self.vocabulary + 1)
        draws = np.random.default_rng(0).choice(self.vocabulary, 50 * self.words + 1, p=(1 / ranks) / (1 / ranks).sum())
        return draws.astype(np.int32)

    def batches(self) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Yield the segments of the text without end, for the peers: inputs and targets, each (unroll, batch)."""
        tokens = self.tokens()
        inputs, targets = (part.reshape(self.batch_size, -1).T for part in (tokens[:-1], tokens[1:]))
        while True:
            for start in range(0, len(inputs), self.unroll):
                yield inputs[start : start + self.unroll], targets[start : start + self.unroll]

    def weights(self) -> Weights:
        """Return the weights that every contender starts from."""
        random, size, rows = np.random.default_rng(1), self.hidden, self.gates * self.hidden

        def uniform(*shape: int) -> np.ndarray:
            return random.uniform(-0.1, 0.1, shape).astype(np.float32)

        layer_shapes = ((rows, size), (rows, size), (rows,), (rows,))
        return Weights(
            uniform(self.vocabulary, size),
            [tuple(uniform(*shape) for shape in layer_shapes) for _ in range(self.layers)],  # type: ignore[misc]
            uniform(self.vocabulary, size),
            uniform(self.vocabulary),
        )

    def products(self) -> List[Tuple[int, int, int, int, bool]]:
        """Return the matrix products of the forward pass as (times, rows, inner, columns, in the decoder).

        The backward pass has two products for each of them.
        """
        cell = self.gates * self.hidden
        layer = [
            (1, self.words, self.hidden, cell, False),
            (self.unroll, self.batch_size, self.hidden, cell, False),
        ]
        return layer * self.layers + [(1, self.words, self.hidden, self.vocabulary, True)]


WORKLOADS: Dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("ptb-rnn-256", "rnn", 1, 256, 10_000, "adam", 0.001),
        Workload("wikitext2-lstm-200", "lstm", 2, 200, 33_278, "sgd", 1.0),
    )
}

# The values of one dimension at a time for which the cost of the first workload is measured.
GROWTH: Dict[str, List[int]] = {
    "hidden": [64, 128, 256, 512, 1024],
    "batch_size": [8, 16, 32, 64, 128],
    "unroll": [10, 20, 35, 70],
    "layers": [1, 2, 4],
    "vocabulary": [2_500, 10_000, 33_278],
    "samples": [1, 2, 4, 8],
    "particles": [1, 4, 16, 64],
}
