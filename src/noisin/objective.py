"""The averaged likelihood and a tighter bound: training objectives, and the test-time estimators (paper, eq. 1)."""

from __future__ import annotations

import math
from typing import Any, List, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import HybridBlock

from noisin.config import OBJECTIVES
from noisin.model import LanguageModel
from noisin.native.crossentropy import cross_entropy


class AveragedLikelihood(HybridBlock):
    r"""Monte-Carlo estimate of eq. 1, the log-likelihood averaged over the noise, or of a tighter bound on log p(x).

    .. math:: L = \frac{1}{S} \sum_s \log p(x | z^s), \quad
              L' = \log \frac{1}{S} \sum_s p(x | z^s), \quad
              \log p(x | z^s) = \sum_t \log p(x_t | z_t^s)

    with z_t^s drawn given z_{t-1}^s and x_{t-1}. By Jensen's inequality E[L] <= E[L'] <= log p(x). E[L'] rises with S
    (Burda et al., 2016), and with one trajectory both are the same. The gradient of L' is that of each trajectory,
    weighed by its share of the likelihood of the segment.

    The S trajectories run in one pass, as a batch S times as wide; each keeps its own state.

    Parameters
    ----------
    model : LanguageModel
    length : int
        T, steps to unroll.
    samples : int, default 1
        S, trajectories of the noise.
    dtype : {'float32', 'bfloat16'}
        Of the operands of the decoder's product.
    objective : {'averaged-log', 'log-averaged'}
        L or L'.

    Inputs:
        - **inputs**: (T, B) token ids, time first.
        - **targets**: (T, B) the words to predict.
        - **states**: list as `begin_state(B)` returns it, S * B rows, trajectory after trajectory.

    Outputs:
        - **loss**: (B,), the negative of L, or of L', for each sequence.
        - **log_p**: (T, S, B), log p of each target on each trajectory, for the estimators below.
        - **next states**: list like `states`.
    """

    def __init__(
        self,
        model: LanguageModel,
        length: int,
        samples: int = 1,
        dtype: str = "float32",
        objective: str = "averaged-log",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is '{objective}': it must be {' or '.join(OBJECTIVES)}")
        self.model = model
        self._length = length
        self._samples = samples
        self._dtype = dtype
        self._log_averaged = objective == "log-averaged" and samples > 1

    def begin_state(self, batch_size: int, ctx: Any = None) -> List[Any]:
        """States for `batch_size` sequences, S trajectories each."""
        return self.model.begin_state(self._samples * batch_size, ctx)

    def hybrid_forward(self, F: Any, inputs: Any, targets: Any, states: List[Any]) -> Tuple[Any, Any, List[Any]]:
        if self._samples > 1:
            inputs = F.tile(inputs, reps=(1, self._samples))
            targets = F.tile(targets, reps=(1, self._samples))
        logits, states = self.model.unroll(self._length, inputs, states, self._dtype)
        log_p = F.pick(F.log_softmax(logits), F.reshape(targets, shape=(-1,)))
        log_p = F.reshape(log_p, shape=(self._length, self._samples, -1))
        if self._log_averaged:
            of_trajectories = F.sum(log_p, axis=0)  # (S, B)
            highest = F.BlockGrad(F.max(of_trajectories, axis=0))
            shares = F.exp(F.broadcast_sub(of_trajectories, F.expand_dims(highest, axis=0)))
            return -F.broadcast_add(F.log(F.mean(shares, axis=0)), highest), log_p, states
        loss = -F.sum(F.mean(log_p, axis=1), axis=0)
        return loss, log_p, states

    def backward(
        self, inputs: mx.nd.NDArray, targets: mx.nd.NDArray, states: List[mx.nd.NDArray]
    ) -> Tuple[float, List[mx.nd.NDArray]]:
        """Set the gradient of each parameter to that of the loss, summed over the batch.

        Parameters
        ----------
        inputs, targets, states
            As of a call.

        Returns
        -------
        (float, list of NDArray)
            The summed loss, and the next states.
        """
        with autograd.record():
            loss, _, states = self(inputs, targets, states)
        loss.backward()
        return float(loss.sum().asscalar()), states


class FusedLikelihood(AveragedLikelihood):
    r"""`AveragedLikelihood` of a model on a CPU, with a faster `backward`.

    With p the softmax of the logits and S trajectories, what goes back into the network is

    .. math:: \frac{\partial (-L)}{\partial logit_{tsj}} = w_s (p_{tsj} - [j = x_t]), \quad
              w_s = \frac{1}{S}, \; \text{or for } L' \; w_s = \frac{p(x | z^s)}{\sum_r p(x | z^r)}

    Parameters
    ----------
    model, length, samples, dtype, objective
        As of `AveragedLikelihood`. With bfloat16 the decoder's bias is added in float32.
    """

    def __init__(
        self,
        model: LanguageModel,
        length: int,
        samples: int = 1,
        dtype: str = "float32",
        objective: str = "averaged-log",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, length, samples, dtype, objective, **kwargs)
        self._products = _DecoderProducts(model, length, dtype)

    def backward(
        self, inputs: mx.nd.NDArray, targets: mx.nd.NDArray, states: List[mx.nd.NDArray]
    ) -> Tuple[float, List[mx.nd.NDArray]]:
        inputs, targets = (mx.nd.tile(ids, reps=(1, self._samples)) for ids in (inputs, targets))
        with autograd.record():
            product, bias, states = self._products(inputs, states)
        weight = 1.0 if self._log_averaged else 1 / self._samples
        log_p, bias_gradient = cross_entropy(product, bias, targets.reshape(-1), weight)
        if not self._log_averaged:
            autograd.backward([product, bias], [product, bias_gradient])
            return -float(log_p.asnumpy().sum(dtype=np.float64)) / self._samples, states
        of_trajectories = log_p.reshape((self._length, self._samples, -1)).sum(axis=0)
        weights = mx.nd.softmax(of_trajectories, axis=0).reshape((1, -1)).tile((self._length, 1)).reshape((-1, 1))
        gradient = mx.nd.broadcast_mul(mx.nd.amp_cast(product, dtype="float32"), weights)
        product_gradient = mx.nd.amp_cast(gradient, dtype=product.dtype)
        autograd.backward([product, bias], [product_gradient, gradient.sum(axis=0)])
        log_likelihoods = averaged(of_trajectories.asnumpy().astype(np.float64)[None])
        return -float(log_likelihoods.sum()), states


class _DecoderProducts(HybridBlock):
    """(inputs, states) -> (the logits before the bias is added, (T * S * B, V) in `dtype`; the bias; next states)."""

    def __init__(self, model: LanguageModel, length: int, dtype: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self._length = length
        self._dtype = dtype

    def hybrid_forward(self, F: Any, inputs: Any, states: List[Any]) -> Tuple[Any, Any, List[Any]]:
        (hidden, weight, bias), states = self.model.decoder_operands(self._length, inputs, states, self._dtype)
        size = self.model.vocabulary_size
        return F.FullyConnected(hidden, weight, no_bias=True, num_hidden=size), F.identity(bias), states


def bound(log_p: np.ndarray) -> np.ndarray:
    """Average of log p over the trajectories: (T, S, B) -> (T, B), whose expectation is eq. 1."""
    return log_p.mean(axis=1)


def averaged(log_p: np.ndarray) -> np.ndarray:
    """Log of the average of p over the trajectories: (T, S, B) -> (T, B), the paper's averaging at test time.

    By Jensen's inequality it is never below `bound`. Its expectation is below the log of the expected p by about
    V / (2 S), with V the variance of p over the trajectories relative to its squared mean: methods whose predictions
    vary more look worse at the same S. `jackknife` removes that bias.

    It is neither a bound on log p(x) nor an estimate of it: no trajectory gains weight by having predicted the past
    well. `noisin.particles` estimates log p(x).
    """
    highest = log_p.max(axis=1)
    return highest + np.log(np.exp(log_p - highest[:, None]).mean(axis=1))


def leave_one_out(log_p: np.ndarray) -> np.ndarray:
    """`averaged` without each trajectory in turn: (T, S, B), S > 1 -> (S, T, B)."""
    return np.stack([averaged(np.delete(log_p, s, axis=1)) for s in range(log_p.shape[1])])


def jackknife(total: float, without: np.ndarray) -> Tuple[float, float]:
    r"""Extrapolate a statistic of S independent trajectories to infinitely many (Quenouille, 1956).

    .. math:: \hat A_\infty = S A - (S - 1) \bar A_{-s}, \quad
              \mathrm{se}^2 = \frac{S - 1}{S} \sum_s (A_{-s} - \bar A_{-s})^2

    Parameters
    ----------
    total : float
        A, the statistic of all trajectories.
    without : array (S,)
        The statistic without each of them.

    Returns
    -------
    (float, float)
        The limit, whose bias is of order 1 / S^2 where that of A is of order 1 / S, and its standard error.
    """
    count, mean = len(without), without.mean()
    with np.errstate(invalid="ignore"):  # NaN where a trajectory's probability underflows
        error = math.sqrt((count - 1) / count * ((without - mean) ** 2).sum())
        return count * total - (count - 1) * mean, error


def approximate_limit(bound: float, averaged: float, samples: int) -> float:
    r"""Estimate the perplexity `averaged` at infinitely many trajectories from its value at S and that of `bound`.

    .. math:: \ln A_\infty = \ln A_S - \ln(B / A_S) / (S - 1)

    It is exact where p varies little over the trajectories; on the models of this project it is within 0.25 % of the
    limit. For records that were written before `jackknife` was.

    Parameters
    ----------
    bound, averaged : float
        Perplexities.
    samples : int
        S. From 1 nothing can be extrapolated: `averaged` is returned, as for a deterministic model.
    """
    return averaged * (averaged / bound) ** (1 / (samples - 1)) if samples > 1 and averaged < math.inf else averaged


def perplexity(log_p_total: float, tokens: int) -> float:
    """exp(-total log p / tokens); infinity where that overflows."""
    try:
        return math.exp(-log_p_total / tokens)
    except OverflowError:
        return math.inf
