"""Are a network's probabilities right, and do they hold under noise: calibration, and perplexity with noise added."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Dict, List, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import HybridBlock

from noisin.config import Config
from noisin.data.batches import evaluation_batches
from noisin.graphs import Tensor
from noisin.methods import NOISIN
from noisin.model import LanguageModel, initial_model


@dataclass(frozen=True)
class Calibration:
    r"""How often the likeliest next word is right, by the probability that the network gives it.

    Parameters
    ----------
    words : array (M,)
        Words predicted in each of M equal intervals of that probability, from 0 to 1.
    confidence : array (M,)
        Their mean probability; 0 where there are no words.
    accuracy : array (M,)
        The share of them that was right; 0 where there are no words.
    """

    words: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        r"""The expected calibration error (Guo et al., 2017).

        .. math:: \mathrm{ECE} = \sum_m \frac{n_m}{n} \, | \mathrm{accuracy}_m - \mathrm{confidence}_m |
        """
        return float((self.words * np.abs(self.accuracy - self.confidence)).sum() / self.words.sum())


def calibration(confidence: np.ndarray, right: np.ndarray, intervals: int = 15) -> Calibration:
    """Sort predictions by confidence.

    Parameters
    ----------
    confidence : array (N,)
        The probability of the likeliest next word.
    right : array (N,) of bool
        Whether it came.
    intervals : int, default 15
        M, as in Guo et al. (2017).

    Returns
    -------
    Calibration
    """
    places = np.minimum((confidence * intervals).astype(int), intervals - 1)
    words = np.bincount(places, minlength=intervals)
    sums = [np.bincount(places, values, minlength=intervals) for values in (confidence, right)]
    return Calibration(words, *(total / np.maximum(words, 1) for total in sums))


def predictions(
    model: LanguageModel, tokens: np.ndarray, config: Config, eos: int, device: mx.Context, samples: int = 0
) -> Tuple[np.ndarray, np.ndarray]:
    """Predict every word of a split.

    Parameters
    ----------
    model : LanguageModel
    tokens : array (N,)
        Token ids.
    config : Config
        For columns and steps of the evaluation.
    eos : int
        Token id of `<eos>`, which precedes the first token.
    device : mxnet.Context
    samples : int, default 0
        Trajectories of the noise whose probabilities are averaged; 0: the noise is off.

    Returns
    -------
    (confidence, right)
        As `calibration` takes them, (N,) each.
    """
    likeliest = _Likeliest(model, config.unroll, samples or 1)
    likeliest.hybridize()
    states = model.begin_state((samples or 1) * config.eval_batch_size, device)
    found = []
    with autograd.train_mode() if samples else autograd.predict_mode():
        for inputs, targets, weights in evaluation_batches(tokens, eos, config.eval_batch_size, config.unroll):
            probability, word, states = likeliest(mx.nd.array(inputs, ctx=device), model.begin_sequence(states))
            right = word.asnumpy() == targets
            found.append((probability.asnumpy()[weights > 0], right[weights > 0]))
    confidence, right = (np.concatenate(parts) for parts in zip(*found))
    return confidence, right


class _Likeliest(HybridBlock):
    """(token ids (T, B), states) -> (probability of the likeliest next word (T, B), its id (T, B), next states)."""

    def __init__(self, model: LanguageModel, length: int, samples: int) -> None:
        super().__init__()
        self.model, self._length, self._samples = model, length, samples

    def hybrid_forward(
        self, F: ModuleType, inputs: Tensor, states: List[Tensor]
    ) -> Tuple[Tensor, Tensor, List[Tensor]]:
        logits, states = self.model.unroll(self._length, F.tile(inputs, reps=(1, self._samples)), states)
        each = F.reshape(F.softmax(logits), shape=(self._length, self._samples, -1, self.model.vocabulary_size))
        probabilities = F.mean(each, axis=1)
        return F.max(probabilities, axis=2), F.argmax(probabilities, axis=2), states


def noisy_copy(model: LanguageModel, config: Config, gamma: float, device: mx.Context) -> LanguageModel:
    """Return the same network with Gaussian noise of this spread on every hidden state.

    The noise is additive, the same for every method, and the only one: noise and dropout of training are left out.

    Parameters
    ----------
    model : LanguageModel
        Initialised.
    config : Config
        That it was built from.
    gamma : float
        Standard deviation of the noise.
    device : mxnet.Context

    Returns
    -------
    LanguageModel
    """
    noise: Dict[str, Any] = {"noise": "gaussian", "noise_parameters": {}, "noise_mode": "additive", "input_gamma": 0.0}
    config = dataclasses.replace(config, method=NOISIN.name, gamma=[gamma], **noise)
    at_once = config.eval_batch_size * config.unroll  # predictions of one trajectory
    noisy = initial_model(config, model.vocabulary_size, device, at_once)
    weights = model.collect_params()
    for name, parameter in noisy.collect_params().items():
        if not name.endswith("gamma"):
            parameter.set_data(weights[name].data())
    return noisy
