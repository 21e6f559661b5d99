"""Sampling of text from a trained model, word by word."""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd

from noisin.model import LanguageModel


def sample_words(
    model: LanguageModel,
    prompt: Sequence[int],
    seed: int = 0,
    temperature: float = 1.0,
    device: Optional[mx.Context] = None,
    excluded: Sequence[int] = (),
    top_k: Optional[int] = None,
    top_p: float = 1.0,
) -> Iterator[int]:
    """Yield token ids without end, drawn from p(x_t | x_{<t})^(1 / temperature) with the noise off.

    Parameters
    ----------
    model : LanguageModel
    prompt : sequence of int
        At least one token id, which the text continues (`<eos>` begins a sentence).
    seed : int, default 0
        Random seed.
    temperature : float, default 1
        Values below 1 favour likely words; 0 always takes the likeliest.
    device : mxnet.Context, default mxnet.cpu()
    excluded : sequence of int, default ()
        Ids that are never drawn, e.g. that of `<unk>`.
    top_k : int, optional
        Draw from the k likeliest words only (Fan et al., 2018).
    top_p : float, default 1
        Draw from the fewest words that have at least this probability together, at the temperature (Holtzman et al.,
        2020).

    Yields
    ------
    int

    Raises
    ------
    ValueError
        For an empty prompt, a temperature that is negative or not finite, top_k below 1 or top_p not in (0, 1].
    """
    if not len(prompt):
        raise ValueError("the prompt is empty: give at least one token")
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature is {temperature}: it must be a finite number of at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be at least 1")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: it must be above 0 and at most 1")
    device = device or mx.cpu()
    random = np.random.RandomState(seed)
    states = model.begin_state(1, device)
    for token in prompt[:-1]:
        _, states = _step(model, token, states, device)
    token = prompt[-1]
    while True:
        logits, states = _step(model, token, states, device)
        logits[list(excluded)] = -np.inf
        if top_k is not None:
            logits[np.argsort(-logits, kind="stable")[top_k:]] = -np.inf
        token = _draw(logits, temperature, top_p, random)
        yield token


def _step(
    model: LanguageModel, token: int, states: List[mx.nd.NDArray], device: mx.Context
) -> Tuple[np.ndarray, List[mx.nd.NDArray]]:
    with autograd.predict_mode():
        logits, states = model(mx.nd.array([token], ctx=device), states)
    return logits.asnumpy()[0].astype(np.float64), states


def _draw(logits: np.ndarray, temperature: float, top_p: float, random: np.random.RandomState) -> int:
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # minus infinity at a temperature near 0: such a word is never drawn
        weights = np.exp((logits - logits.max()) / temperature)
    probabilities = weights / weights.sum()
    if top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        enough = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
        probabilities[order[enough:]] = 0
        probabilities /= probabilities.sum()
    return int(random.choice(len(probabilities), p=probabilities))
