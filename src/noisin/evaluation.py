"""Perplexity of a split: clean, bound and averaged (DESIGN section 5), and the limit of the last in the samples."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from tqdm import tqdm

from noisin.config import Config
from noisin.data.batches import evaluation_batches
from noisin.data.corpus import Corpus
from noisin.graphs import traced_for
from noisin.model import LanguageModel
from noisin.objective import AveragedLikelihood, averaged, bound, jackknife, leave_one_out, perplexity


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
        with autograd.predict_mode(), traced_for("prediction"):  # the graph draws nothing
            return perplexity(self._totals(self._clean, tokens)[0], len(tokens))

    def all(self, tokens: np.ndarray, seed: int = 0) -> Dict[str, float]:
        """Every perplexity of the split.

        Parameters
        ----------
        tokens : array (N,)
        seed : int, default 0
            Random seed for the noise.

        Returns
        -------
        dict
            `clean`, `bound`, `averaged` and `samples` (S); `averaged_limit`, the limit of `averaged` for S to infinity,
            and its standard error `averaged_limit_error`, both NaN at S = 1. For a deterministic model the perplexities
            are one number and S is 1.
        """
        clean = self.clean(tokens)
        if not self._model.stochastic:
            same = dict.fromkeys(("clean", "bound", "averaged", "averaged_limit"), clean)
            return {**same, "averaged_limit_error": 0.0, "samples": 1}
        mx.random.seed(seed)
        with autograd.train_mode():
            of_bound, of_averaged, *without = self._totals(self._sampled, tokens)
        limit, error = jackknife(of_averaged, np.array(without)) if without else (math.nan, math.nan)
        count = len(tokens)
        limit_ppl = perplexity(limit, count)
        return {
            "clean": clean,
            "bound": perplexity(of_bound, count),
            "averaged": perplexity(of_averaged, count),
            "averaged_limit": limit_ppl,
            "averaged_limit_error": limit_ppl * error / count,
            "samples": self.samples,
        }

    def _totals(self, objective: AveragedLikelihood, tokens: np.ndarray) -> np.ndarray:
        """Total log-likelihood of bound, of averaged and, where S > 1, of averaged without each trajectory."""
        totals: Any = 0.0  # becomes float64
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
                scores = [bound(log_p), averaged(log_p), *(leave_one_out(log_p) if log_p.shape[1] > 1 else ())]
                totals = totals + (np.stack(scores) * weights).sum(axis=(1, 2))
                bar.update(int(weights.sum()))
        return totals


def make_evaluator(
    model: LanguageModel, config: Config, corpus: Corpus, device: mx.Context, progress: bool = False
) -> Evaluator:
    """The evaluator that `config` describes."""
    eos = corpus.vocabulary["<eos>"]
    return Evaluator(model, eos, config.eval_batch_size, config.unroll, config.eval_samples, device, progress)
