"""Batches of a split, for training and for evaluation."""

from __future__ import annotations

import math
from typing import Iterator, Tuple

import numpy as np

from noisin.system.errors import UserError, plural

# Of a text: a larger share that no batch trains on is worth a line. The last, shorter segment is left out rather than
# trained on, which would add an update to every epoch of the committed runs for 0.03 to 0.12 % of their tokens.
NOTABLE_SHARE = 0.05


def number_of_training_batches(tokens: np.ndarray, batch_size: int, unroll: int) -> int:
    """Count what `training_batches` yields for the same arguments (0 if it would refuse them)."""
    _check_shape(batch_size, unroll)
    return max(len(tokens) - 1, 0) // batch_size // unroll


def training_batches(tokens: np.ndarray, batch_size: int, unroll: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Cut a split into batches for truncated backpropagation through time.

    The N - 1 pairs of a token and its successor are laid out in `batch_size` contiguous columns, so that the state
    after one batch is the state before the next. What does not fill the columns is dropped: at most batch_size - 1
    pairs at the end of the text, and the last batch if it has fewer than `unroll` steps (every batch has the same
    shape, and so the hybridized graph is built once).

    Parameters
    ----------
    tokens : np.ndarray, shape (N,), int32
    batch_size : int
        B, the number of columns.
    unroll : int
        T, the number of steps of each batch.

    Returns
    -------
    iterator of (inputs, targets)
        Both of shape (T, B), int32; targets are the inputs' successors in the text.

    Raises
    ------
    UserError
        If there are too few tokens for one batch.

    Examples
    --------
    Twelve tokens make eleven pairs: five in each of two columns (one pair is left over), and two batches of two
    steps (one step of each column is left over).

    >>> for inputs, targets in training_batches(np.arange(12), batch_size=2, unroll=2):
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 5], [1, 6]] [[1, 6], [2, 7]]
    [[2, 7], [3, 8]] [[3, 8], [4, 9]]
    """
    number = number_of_training_batches(tokens, batch_size, unroll)
    if number == 0:
        raise UserError(
            f"the training split has {plural(len(tokens), 'token')}, but a batch of {plural(batch_size, 'sequence')} "
            f"of {plural(unroll, 'step')} takes {batch_size * unroll + 1:,}; lower the batch size or the unroll, or "
            "use more text"
        )
    pairs = (len(tokens) - 1) // batch_size * batch_size
    inputs, targets = _columns(tokens[:pairs], batch_size), _columns(tokens[1 : pairs + 1], batch_size)
    return ((inputs[i : i + unroll], targets[i : i + unroll]) for i in range(0, number * unroll, unroll))


def left_out_notice(tokens: np.ndarray, batch_size: int, unroll: int) -> str:
    """Say in one line how much of a split `training_batches` leaves out; empty where it is next to nothing."""
    trained = number_of_training_batches(tokens, batch_size, unroll) * batch_size * unroll
    left_out = max(len(tokens) - 1, 0) - trained
    if trained == 0 or left_out <= NOTABLE_SHARE * len(tokens):
        return ""
    return (
        f"{left_out:,} of the training split's {len(tokens):,} tokens ({left_out / len(tokens):.0%}) are not trained "
        f"on: they do not fill a batch of {plural(batch_size, 'sequence')} of {plural(unroll, 'step')}; lower "
        "--batch-size or --unroll"
    )


def evaluation_batches(
    tokens: np.ndarray, eos: int, batch_size: int, unroll: int
) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cut a split into batches that score every one of its N tokens exactly once (docs/method.md).

    The first token is predicted from an initial `eos`, so there are N targets for N tokens. They are laid out in
    `batch_size` contiguous columns whose length is a multiple of `unroll`; what is left of the last columns is padded
    with weight 0. A column starts without the state of the one before it, so a smaller `batch_size` is a little more
    exact: with 1, every token is predicted from all that precede it.

    Parameters
    ----------
    tokens : np.ndarray, shape (N,), int32
    eos : int
        The id of ``<eos>``.
    batch_size : int
        B, the number of columns.
    unroll : int
        T, the number of steps of each batch.

    Returns
    -------
    iterator of (inputs, targets, weights)
        Each of shape (T, B); int32, int32 and float32. A weight is 1 for a token and 0 for padding.

    Raises
    ------
    UserError
        If there are no tokens.

    Examples
    --------
    Five tokens and an initial 0, in two columns of four steps:

    >>> for inputs, targets, weights in evaluation_batches(np.arange(1, 6), eos=0, batch_size=2, unroll=2):
    ...     print(inputs.tolist(), targets.tolist(), weights.tolist())
    [[0, 4], [1, 0]] [[1, 5], [2, 0]] [[1.0, 1.0], [1.0, 0.0]]
    [[2, 0], [3, 0]] [[3, 0], [4, 0]] [[1.0, 0.0], [1.0, 0.0]]
    """
    _check_shape(batch_size, unroll)
    size = len(tokens)
    if size == 0:
        raise UserError("the split to evaluate has no tokens, at least one expected; use more text")
    number = math.ceil(size / (batch_size * unroll))
    padding = number * unroll * batch_size - size
    inputs = _columns(np.concatenate([[eos], tokens[:-1], np.full(padding, eos)]), batch_size)
    targets = _columns(np.concatenate([tokens, np.full(padding, eos)]), batch_size)
    weights = _columns(np.concatenate([np.ones(size), np.zeros(padding)]), batch_size, np.float32)
    steps = [slice(i, i + unroll) for i in range(0, number * unroll, unroll)]
    return ((inputs[step], targets[step], weights[step]) for step in steps)


def _check_shape(batch_size: int, unroll: int) -> None:
    if batch_size < 1 or unroll < 1:
        raise ValueError(f"batch_size = {batch_size}, unroll = {unroll}: both must be at least 1")


def _columns(flat: np.ndarray, batch_size: int, dtype: type = np.int32) -> np.ndarray:
    """Lay a text out in contiguous columns: shape (length, batch_size)."""
    return np.ascontiguousarray(flat.reshape(batch_size, -1).T, dtype=dtype)
