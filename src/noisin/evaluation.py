"""Perplexity of a split by the estimators clean, bound, averaged and averaged_limit (docs/method.md)."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Tuple

import gluonnlp
import mxnet as mx
import numpy as np
from mxnet import autograd
from tqdm import tqdm

from noisin.config import Config
from noisin.data.batches import evaluation_batches
from noisin.graphs import traced_for
from noisin.model import LanguageModel
from noisin.objective import AveragedLikelihood, averaged, bound, jackknife, leave_one_out, perplexity
from noisin.particles import ParticleFilter


class Evaluator:
    """Score every token of a split exactly once, in float32 also after training in bfloat16.

    Parameters
    ----------
    model : LanguageModel
    eos : int
        Token id of `<eos>`, which precedes the first token of the split.
    batch_size : int, default 10
        Number of columns that the split is cut into; each starts from a zero state.
    unroll : int, default 35
        Steps in one pass. States are carried over from pass to pass.
    samples : int, default 10
        S, trajectories of the noise; each keeps its own state through the whole split.
    device : mxnet.Context, default mxnet.cpu()
    progress : bool, default False
        Show a progress bar if standard error is a terminal.
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
        """Return the perplexity per token with the noise off: exp of the mean of -log p(x_t | h_t).

        Parameters
        ----------
        tokens : array (N,)
            Token ids.

        Returns
        -------
        float
        """
        with autograd.predict_mode(), traced_for("prediction"):  # the graph draws nothing
            return perplexity(self._totals(self._clean, tokens)[0], len(tokens))

    def bound(self, tokens: np.ndarray, seed: int = 0) -> float:
        """Return the perplexity per token with the noise on: exp of the mean of -log p(x_t | z_t) over trajectories.

        Parameters
        ----------
        tokens : array (N,)
            Token ids.
        seed : int, default 0
            Random seed for the noise.

        Returns
        -------
        float
        """
        return perplexity(self._sampled_totals(tokens, seed)[0], len(tokens))

    def _sampled_totals(self, tokens: np.ndarray, seed: int) -> np.ndarray:
        mx.random.seed(seed)
        with autograd.train_mode():
            return self._totals(self._sampled, tokens)

    def all(self, tokens: np.ndarray, seed: int = 0) -> Dict[str, float]:
        """Return the perplexities per token by all estimators.

        Parameters
        ----------
        tokens : array (N,)
            Token ids.
        seed : int, default 0
            Random seed for the noise.

        Returns
        -------
        dict
            Perplexities `clean`, `bound` and `averaged`; `averaged_limit`, the limit of `averaged` for S to infinity,
            and its standard error `averaged_limit_error`, both NaN if S is 1; and S as `samples`. For a deterministic
            model all perplexities are equal and S is 1.
        """
        clean = self.clean(tokens)
        if not self._model.stochastic:
            same = dict.fromkeys(("clean", "bound", "averaged", "averaged_limit"), clean)
            return {**same, "averaged_limit_error": 0.0, "samples": 1}
        of_bound, of_averaged, *without = self._sampled_totals(tokens, seed)
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

    def marginal(self, tokens: np.ndarray, particles: int, repetitions: int = 3, seed: int = 0) -> Dict[str, float]:
        """Estimate the perplexity of log p(x), with the noise integrated out, by a particle filter.

        `averaged` averages each word's probability over trajectories that do not learn from the words before it. Here a
        trajectory that has predicted the past well counts more, which is what log p(x) means.

        Parameters
        ----------
        tokens : array (N,)
        particles : int
            P, trajectories in each column. One evaluation costs what `bound` costs with as many samples.
        repetitions : int, default 3
            Independent filters, whose log-likelihoods are averaged.
        seed : int, default 0
            Random seed for noise and resampling.

        Returns
        -------
        dict
            `marginal`, the perplexity; `marginal_deviation`, its standard deviation over the repetitions, NaN for one;
            `effective_particles`, the mean effective sample size before resampling; `particles` and `repetitions`. For
            a deterministic model, one particle gives the exact value.

        Raises
        ------
        ValueError
            For particles or repetitions below 1.
        """
        for name, value in (("particles", particles), ("repetitions", repetitions)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if not self._model.stochastic:
            particles = repetitions = 1
        objective = AveragedLikelihood(self._model, 1, particles)
        objective.hybridize(static_alloc=True, static_shape=True)
        found = []
        for repetition in range(repetitions):
            random = np.random.RandomState((seed, repetition))
            # Not a fixed step from the last one: with that of another `seed`, the streams would be the same.
            mx.random.seed(random.randint(2**31) if repetition else seed)
            with autograd.train_mode():
                found.append(self._filtered(objective, tokens, ParticleFilter(particles, self._batch_size, random)))
        totals, effective = np.transpose(found)
        perplexities = [perplexity(total, len(tokens)) for total in totals]
        return {
            "marginal": perplexity(totals.mean(), len(tokens)),
            "marginal_deviation": float(np.std(perplexities, ddof=1)) if repetitions > 1 else math.nan,
            "effective_particles": float(effective.mean()),
            "particles": particles,
            "repetitions": repetitions,
        }

    def _filtered(
        self, objective: AveragedLikelihood, tokens: np.ndarray, particles: ParticleFilter
    ) -> Tuple[float, float]:
        """Total log-likelihood of one filter, and its mean effective sample size."""
        total, effective = 0.0, []
        states = objective.begin_state(self._batch_size, self._device)
        with self._bar("particles", len(tokens)) as bar:
            for inputs, targets, weights in evaluation_batches(tokens, self._eos, self._batch_size, self._unroll):
                states = self._model.begin_sequence(states)
                for word, target, weight in zip(inputs, targets, weights):
                    word, target = (mx.nd.array(ids[None], ctx=self._device) for ids in (word, target))
                    _, log_p, states = objective(word, target, states)
                    counted = weight > 0
                    estimate = particles.weigh(log_p.asnumpy()[0])
                    total += float(estimate[counted].sum())
                    effective.append(particles.effective[counted].mean() if counted.any() else math.nan)
                    ancestors = particles.resample()
                    if ancestors is not None:
                        rows = (ancestors * self._batch_size + np.arange(self._batch_size)).reshape(-1)
                        rows = mx.nd.array(rows, ctx=self._device, dtype="int32")  # float32 has no 2^24 + 1
                        states = [state.take(rows) for state in states]
                    bar.update(int(counted.sum()))
        return total, float(np.nanmean(effective))

    def _bar(self, name: str, words: int) -> tqdm:
        hidden = None if self._progress else True
        return tqdm(total=words, unit=" words", unit_scale=True, desc=name, leave=False, disable=hidden)

    def _totals(self, objective: AveragedLikelihood, tokens: np.ndarray) -> np.ndarray:
        """Return total log-likelihoods: of bound, of averaged and, if S > 1, of averaged without each trajectory."""
        totals: Any = 0.0  # becomes float64
        states = objective.begin_state(self._batch_size, self._device)
        with self._bar("evaluating", len(tokens)) as bar:
            for inputs, targets, weights in evaluation_batches(tokens, self._eos, self._batch_size, self._unroll):
                states = self._model.begin_sequence(states)
                inputs, targets = (mx.nd.array(ids, ctx=self._device) for ids in (inputs, targets))
                _, log_p, states = objective(inputs, targets, states)
                log_p = log_p.asnumpy().astype(np.float64)
                scores = [bound(log_p), averaged(log_p), *(leave_one_out(log_p) if log_p.shape[1] > 1 else ())]
                totals = totals + np.where(weights > 0, scores, 0).sum(axis=(1, 2))  # padding need not be finite
                bar.update(int(weights.sum()))
        return totals


def make_evaluator(
    model: LanguageModel, config: Config, vocabulary: gluonnlp.Vocab, device: mx.Context, progress: bool = False
) -> Evaluator:
    """Build the evaluator that `config` describes.

    Parameters
    ----------
    model : LanguageModel
    config : Config
    vocabulary : gluonnlp.Vocab
        The model's.
    device : mxnet.Context
    progress : bool, default False
        As in `Evaluator`.

    Returns
    -------
    Evaluator
    """
    eos = vocabulary["<eos>"]
    return Evaluator(model, eos, config.eval_batch_size, config.unroll, config.eval_samples, device, progress)
