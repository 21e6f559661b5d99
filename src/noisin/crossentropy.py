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

from noisin import compiled
from noisin._environment import threads
from noisin.compiled import ARRAY, NUMBER
from noisin.model import LanguageModel
from noisin.objective import AveragedLikelihood


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
        targets = targets.asnumpy().reshape(-1)
        log_p, bias_gradient = cross_entropy(
            compiled.memory(product), compiled.memory(bias), targets, 1 / self._samples
        )
        autograd.backward([product, bias], [product, mx.nd.array(bias_gradient)])
        return -float(log_p.sum(dtype=np.float64)) / self._samples, states


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
    product: np.ndarray, bias: np.ndarray, targets: np.ndarray, weight: float = 1.0
) -> Tuple[np.ndarray, np.ndarray]:
    r"""Log p of each target under softmax(product + bias), and in place of `product` the gradient of -weight * log p.

    Parameters
    ----------
    product : array (N, V), float32, or bfloat16 as uint16
        Is overwritten.
    bias : array (V,), float32
    targets : array (N,) of int
        From 0 to below V.
    weight : float, default 1

    Returns
    -------
    (log p (N,), the gradient of the bias (V,))
        A row with a NaN or an infinite logit has a gradient of NaN.
    """
    rows, size = product.shape
    targets = np.ascontiguousarray(targets, dtype=np.int32)
    if targets.shape != (rows,) or bias.shape != (size,) or not product.flags.c_contiguous:
        raise ValueError(f"{product.shape} logits, a bias of {bias.shape} and {targets.shape} targets do not fit")
    if targets.min() < 0 or targets.max() >= size:
        raise ValueError(f"a target is not from 0 to {size - 1}")
    buffers, bias_gradients = np.empty((threads(), size), np.float32), np.zeros((threads(), size), np.float32)
    log_p = np.empty(rows, np.float32)

    def run(part: int, start: int, end: int) -> None:
        logits, *given = (array.ctypes.data for array in (product[start:], bias, targets[start:]))
        taken = (array.ctypes.data for array in (buffers[part], log_p[start:], bias_gradients[part]))
        _KERNEL(logits, product.dtype == np.uint16, *given, weight, end - start, size, *taken)

    compiled.in_parts(rows, run)
    return log_p, bias_gradients.sum(axis=0)


_KERNEL = compiled.function(
    "_crossentropy",
    "noisin_cross_entropy",
    [ARRAY, ctypes.c_int, ARRAY, ARRAY, ctypes.c_float, NUMBER, NUMBER, ARRAY, ARRAY, ARRAY],
)
