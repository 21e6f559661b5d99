"""Perplexity of a split under the three estimators of DESIGN section 5: clean, bound and averaged."""

from __future__ import annotations

from typing import Dict, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from tqdm import tqdm

from noisin.data import evaluation_batches
from noisin.model import LanguageModel
from noisin.objective import AveragedLikelihood, averaged, bound, perplexity


class Evaluator:
    """Scores every token of a split exactly once, in float32 whatever the training precision.

    Parameters
    ----------
    model : LanguageModel
    eos : int
        Id of the word that stands before the first one.
    batch_size : int, default 10
        Columns the split is cut into; each starts from a zero state.
    unroll : int, default 35
        Steps in one pass; states are carried on.
    samples : int, default 10
        S, trajectories of the noise; each keeps its own state through the whole split.
    device : mxnet.Context, default cpu
    progress : bool, default False
        Show a progress bar where standard error is a terminal.
    """

    def __init__(
        self,
        model: LanguageModel,
        eos: int,
        batch_size: int = 10,
        unroll: int = 35,
        samples: int = 10,
        device: Optional[mx.Context] = None,
        progress: bool = False,
    ) -> None:
        self._model = model
        self._eos, self._batch_size, self._unroll = eos, batch_size, unroll
        self._device = device or mx.cpu()
        self._progress = progress
        self.samples = samples if model.stochastic else 1
        self._clean = self._objective(1)
        self._sampled = self._objective(self.samples)

    def _objective(self, samples: int) -> AveragedLikelihood:
        objective = AveragedLikelihood(self._model, self._unroll, samples)
        objective.hybridize(static_alloc=True, static_shape=True)
        return objective

    def clean(self, tokens: np.ndarray) -> float:
        """Perplexity with the noise off: exp of the mean of -log p(x_t | h_t)."""
        with autograd.predict_mode():
            return self._perplexities(self._clean, tokens)["bound"]

    def all(self, tokens: np.ndarray, seed: int = 0) -> Dict[str, float]:
        """The perplexities `clean`, `bound` and `averaged`; for a deterministic model they are one number.

        Parameters
        ----------
        tokens : array (N,)
        seed : int, default 0
            Of the noise.
        """
        clean = self.clean(tokens)
        if not self._model.stochastic:
            return {"clean": clean, "bound": clean, "averaged": clean, "samples": 1}
        mx.random.seed(seed)
        with autograd.train_mode():
            sampled = self._perplexities(self._sampled, tokens)
        return {"clean": clean, **sampled, "samples": self.samples}

    def _perplexities(self, objective: AveragedLikelihood, tokens: np.ndarray) -> Dict[str, float]:
        totals = np.zeros(2)  # in float64: of the bound and of the averaged log-likelihood
        states = objective.begin_state(self._batch_size, self._device)
        with tqdm(
            total=len(tokens),
            unit=" words",
            unit_scale=True,
            desc="evaluating",
            leave=False,
            disable=None if self._progress else True,
        ) as bar:
            for inputs, targets, weights in evaluation_batches(tokens, self._eos, self._batch_size, self._unroll):
                states = self._model.begin_sequence(states)
                inputs, targets = (mx.nd.array(ids, ctx=self._device) for ids in (inputs, targets))
                _, log_p, states = objective(inputs, targets, states)
                log_p = log_p.asnumpy().astype(np.float64)
                totals += [(bound(log_p) * weights).sum(), (averaged(log_p) * weights).sum()]
                bar.update(int(weights.sum()))
        return {name: perplexity(total, len(tokens)) for name, total in zip(("bound", "averaged"), totals)}
