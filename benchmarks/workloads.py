"""The workloads: training steps in the settings of the paper's two corpora, on random words of as many types.

This module does not import noisin, whose settings of threads and memory the peers must not get.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import numpy as np

GAMMA = 0.2  # spread of every noisy contender; its value does not change the cost


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
        draws = np.random.default_rng(0).choice(self.vocabulary, 50 * self.words, p=(1 / ranks) / (1 / ranks).sum())
        return draws.astype(np.int32)

    def batches(self) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Yield the segments of the text without end, for the peers: inputs and targets, each (unroll, batch)."""
        columns = self.tokens().reshape(self.batch_size, -1).T
        while True:
            for start in range(0, len(columns) - self.unroll, self.unroll):
                yield columns[start : start + self.unroll], columns[start + 1 : start + 1 + self.unroll]

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
}
