"""The averaged likelihood and a tighter bound: training objectives, and the test-time estimators (paper, eq. 1)."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, List, Optional, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import HybridBlock

from noisin.config import OBJECTIVES
from noisin.graphs import Tensor
from noisin.model import LanguageModel
from noisin.native.crossentropy import cross_entropy, scale_rows


class AveragedLikelihood(HybridBlock):
    r"""Monte Carlo estimate of the averaged log-likelihood (paper, section 3, eq. 1), or of a tighter bound.

    .. math:: L = \frac{1}{S} \sum_s \log p(x | z^s), \quad
              L' = \log \frac{1}{S} \sum_s p(x | z^s), \quad
              \log p(x | z^s) = \sum_t \log p(x_t | z_t^s)

    with z_t^s drawn given z_{t-1}^s and x_{t-1}. By Jensen's inequality E[L] <= E[L'] <= log p(x). E[L'] rises with S
    (Burda et al., 2016), and with one trajectory both are the same. The gradient of L' is that of each trajectory,
    weighed by its share of the likelihood of the segment.

    The S trajectories run in one pass, as a batch S times as wide. Each keeps its own state.

    Parameters
    ----------
    model : LanguageModel
    length : int
        T, steps to unroll.
    samples : int, default 1
        S, trajectories of the noise.
    dtype : {'float32', 'bfloat16'}, default 'float32'
        Type of the operands of the decoder's product.
    objective : {'averaged-log', 'log-averaged'}, default 'averaged-log'
        L or L'.

    Inputs:
        - **inputs**: (T, B) token ids, time first.
        - **targets**: (T, B) ids of the words to predict.
        - **states**: list as `begin_state(B)` returns it, S * B rows, trajectory after trajectory.

    Outputs:
        - **loss**: (B,), -L or -L' of each sequence, in nats.
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

    def begin_state(self, batch_size: int, ctx: Optional[mx.Context] = None) -> List[mx.nd.NDArray]:
        """Return the model's states for `batch_size` sequences with S trajectories each: S * `batch_size` rows."""
        return self.model.begin_state(self._samples * batch_size, ctx)

    def hybrid_forward(
        self, F: ModuleType, inputs: Tensor, targets: Tensor, states: List[Tensor]
    ) -> Tuple[Tensor, Tensor, List[Tensor]]:
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
        """Set each parameter's gradient to that of the loss, summed over the batch.

        Parameters
        ----------
        inputs, targets, states
            As in a call.

        Returns
        -------
        (loss, states)
            The loss summed over the batch, in nats; and the next states.
        """
        with autograd.record():
            loss, _, states = self(inputs, targets, states)
        loss.backward()
        return float(loss.sum().asscalar()), states


class FusedLikelihood(AveragedLikelihood):
    r"""`AveragedLikelihood` of a model on a CPU, with a faster `backward`.

    With p the softmax of the logits and S trajectories, the gradient that enters the network is

    .. math:: \frac{\partial (-L)}{\partial logit_{tsj}} = w_s (p_{tsj} - [j = x_t]), \quad
              w_s = \frac{1}{S}, \; \text{or for } L' \; w_s = \frac{p(x | z^s)}{\sum_r p(x | z^r)}

    Parameters
    ----------
    model, length, samples, dtype, objective
        As in `AveragedLikelihood`. With bfloat16, the decoder's bias is added in float32.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._products = _DecoderProducts(self.model, self._length, self._dtype)

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
        shares = mx.nd.softmax(of_trajectories, axis=0).reshape((1, -1)).tile((self._length, 1))
        bias_gradient = scale_rows(product, shares.reshape((-1,)))
        autograd.backward([product, bias], [product, bias_gradient])
        return -float(averaged(of_trajectories.asnumpy().astype(np.float64)[None]).sum()), states


class _DecoderProducts(HybridBlock):
    """(inputs, states) -> (logits without the bias, (T * S * B, V) in `dtype`; the bias (V,); next states)."""

    def __init__(self, model: LanguageModel, length: int, dtype: str) -> None:
        super().__init__()
        self.model = model
        self._length = length
        self._dtype = dtype

    def hybrid_forward(
        self, F: ModuleType, inputs: Tensor, states: List[Tensor]
    ) -> Tuple[Tensor, Tensor, List[Tensor]]:
        (hidden, weight, bias), states = self.model.decoder_operands(self._length, inputs, states, self._dtype)
        size = self.model.vocabulary_size
        return F.FullyConnected(hidden, weight, no_bias=True, num_hidden=size), F.identity(bias), states


def bound(log_p: np.ndarray) -> np.ndarray:
    """Return the average of log p over trajectories, (1/S) sum_s log p_s, whose expectation is the paper's eq. 1.

    Parameters
    ----------
    log_p : array (T, S, B)
        Log p of each target on each trajectory, in nats.

    Returns
    -------
    array (T, B)
    """
    return log_p.mean(axis=1)


def averaged(log_p: np.ndarray) -> np.ndarray:
    """Return the log of the average of p over trajectories, log (1/S) sum_s p_s: the paper's averaging at test time.

    By Jensen's inequality it is never below `bound`. Its expectation is below the log of the expected p by about
    V / (2 S), where V is the variance of p over trajectories divided by its squared mean. So at the same S, methods
    whose predictions vary more look worse; `jackknife` removes that bias.

    It is neither a bound on log p(x) nor an estimate of it: no trajectory gains weight by having predicted the past
    well. `noisin.particles` estimates log p(x).

    Parameters
    ----------
    log_p : array (T, S, B)
        Log p of each target on each trajectory, in nats.

    Returns
    -------
    array (T, B)
    """
    highest = log_p.max(axis=1)
    highest = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return highest + np.log(np.exp(log_p - highest[:, None]).mean(axis=1))


def leave_one_out(log_p: np.ndarray) -> np.ndarray:
    """Return `averaged` without each trajectory in turn: log p (T, S, B), S > 1 -> (S, T, B)."""
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
        A_{-s}, the statistic without each trajectory in turn.

    Returns
    -------
    (limit, error)
        The limit, whose bias is of order 1 / S^2 where A's is of order 1 / S; and its standard error. Both are NaN if
        some A_{-s} is not finite.
    """
    if not np.isfinite(without).all():
        return math.nan, math.nan
    count, mean = len(without), without.mean()
    error = math.sqrt((count - 1) / count * ((without - mean) ** 2).sum())
    return count * total - (count - 1) * mean, error


def approximate_limit(bound: float, averaged: float, samples: int) -> float:
    r"""Estimate the perplexity `averaged` for S to infinity from `bound` and `averaged` at one S.

    .. math:: \ln A_\infty = \ln A_S - \ln(B / A_S) / (S - 1)

    It serves records that were written before `jackknife` existed. The formula is exact where p varies little over
    trajectories; on the records of this project that have both, it is up to 0.7 % too high.

    Parameters
    ----------
    bound, averaged : float
        B and A_S, perplexities per word.
    samples : int
        S.

    Returns
    -------
    float
        A_infinity; `averaged` itself if S is 1 (e.g. for a deterministic model) or `bound` is infinite.
    """
    return averaged * (averaged / bound) ** (1 / (samples - 1)) if samples > 1 and bound < math.inf else averaged


def perplexity(log_p_total: float, tokens: int) -> float:
    """Return the perplexity per token, exp(-log_p_total / tokens), or infinity if that overflows.

    Parameters
    ----------
    log_p_total : float
        Sum of log p over all tokens, in nats.
    tokens : int
        Number of tokens.

    Returns
    -------
    float
    """
    try:
        return math.exp(-log_p_total / tokens)
    except OverflowError:
        return math.inf
