"""The averaged likelihood on a CPU, with softmax, cross-entropy and their gradient in one pass.

The logits are the largest array of a training step, and MXNet's operators pass over them again and again: forward and
backward through softmax, choice of the target and bias, and through two conversions with bfloat16.
"""

from __future__ import annotations

import ctypes
from typing import Any, List, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import HybridBlock

from noisin.compiled import ARRAY, NUMBER, Operator, function
from noisin.model import BFLOAT16, LanguageModel
from noisin.objective import AveragedLikelihood
from noisin.system.threads import threads


class FusedLikelihood(AveragedLikelihood):
    r"""`AveragedLikelihood` of a model on a CPU, with a faster `backward`.

    With p the softmax of the logits and S trajectories, what goes back into the network is

    .. math:: \frac{\partial (-L)}{\partial logit_{tsj}} = \frac{1}{S} (p_{tsj} - [j = x_t])

    Parameters
    ----------
    model, length, samples, dtype
        As of `AveragedLikelihood`. With bfloat16 the decoder's bias is added in float32.
    """

    def __init__(
        self, model: LanguageModel, length: int, samples: int = 1, dtype: str = "float32", **kwargs: Any
    ) -> None:
        super().__init__(model, length, samples, dtype, **kwargs)
        self._products = _DecoderProducts(model, length, dtype)

    def backward(
        self, inputs: mx.nd.NDArray, targets: mx.nd.NDArray, states: List[mx.nd.NDArray]
    ) -> Tuple[float, List[mx.nd.NDArray]]:
        inputs, targets = (mx.nd.tile(ids, reps=(1, self._samples)) for ids in (inputs, targets))
        with autograd.record():
            product, bias, states = self._products(inputs, states)
        log_p, bias_gradient = cross_entropy(product, bias, targets.reshape(-1), 1 / self._samples)
        autograd.backward([product, bias], [product, bias_gradient])
        return -float(log_p.asnumpy().sum(dtype=np.float64)) / self._samples, states


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


def cross_entropy(
    product: mx.nd.NDArray, bias: mx.nd.NDArray, targets: mx.nd.NDArray, weight: float = 1.0
) -> Tuple[mx.nd.NDArray, mx.nd.NDArray]:
    r"""Log p of each target under softmax(product + bias), and in place of `product` the gradient of -weight * log p.

    Parameters
    ----------
    product : NDArray (N, V), float32 or bfloat16
        Is overwritten.
    bias : NDArray (V,), float32
    targets : NDArray (N,)
        From 0 to below V.
    weight : float, default 1

    Returns
    -------
    (log p (N,), the gradient of the bias (V,))
        A row with a logit of NaN or +infinity has a gradient of NaN.

    Raises
    ------
    ValueError
        If shapes or types do not fit, or a target is out of range.
    """
    rows, size = product.shape
    if targets.shape != (rows,) or bias.shape != (size,):
        raise ValueError(f"{product.shape} logits, a bias of {bias.shape} and {targets.shape} targets do not fit")
    if product.dtype not in (np.float32, BFLOAT16) or bias.dtype != np.float32:
        raise ValueError(
            f"{product.dtype} logits and a bias of {bias.dtype}: float32 (or bfloat16) and float32 expected"
        )
    ids = targets.asnumpy()
    if not (ids.min() >= 0 and ids.max() < size):  # nor NaN
        raise ValueError(f"a target is not from 0 to {size - 1}")
    targets, parts = mx.nd.array(ids, dtype=np.int32), threads()
    log_p, bias_gradient, scratch = (mx.nd.empty(shape) for shape in ((rows,), (size,), (2 * parts, size)))
    _CrossEntropy.push(
        reads={"bias": bias, "targets": targets},
        writes={"product": product, "scratch": scratch, "log_p": log_p, "bias_gradient": bias_gradient},
        half=product.dtype != np.float32,
        rows=rows,
        size=size,
        parts=parts,
        weight=weight,
    )
    return log_p, bias_gradient


class _CrossEntropy(Operator):
    run = function("_crossentropy", "noisin_cross_entropy")
    _fields_ = [
        *((name, ARRAY) for name in ("product", "bias", "targets", "scratch", "log_p", "bias_gradient")),
        *((name, NUMBER) for name in ("half", "rows", "size", "parts")),
        ("weight", ctypes.c_float),
    ]
