"""Softmax, cross-entropy and their gradient in one pass, on a CPU.

The logits are the largest array of a training step. MXNet's operators pass over them many times: forward and backward
through softmax, choice of the target and bias, and with bfloat16 also through two conversions.
"""

from __future__ import annotations

import ctypes
from typing import Tuple

import mxnet as mx
import numpy as np

from noisin.graphs import BFLOAT16
from noisin.native.compiled import ARRAY, NUMBER, Operator, function
from noisin.system.threads import threads


def cross_entropy(
    product: mx.nd.NDArray, bias: mx.nd.NDArray, targets: mx.nd.NDArray, weight: float = 1.0
) -> Tuple[mx.nd.NDArray, mx.nd.NDArray]:
    r"""Return log p of each target x_n, and write the gradient of -weight * log p in place of `product`.

    .. math::
        p_n = softmax(product_n + bias), \quad
        \frac{\partial (-w \sum_n \log p_n(x_n))}{\partial product_{nj}} = w (p_{nj} - [j = x_n])

    Parameters
    ----------
    product : NDArray (N, V), float32 or bfloat16
        Logits without the bias; overwritten by their gradient.
    bias : NDArray (V,), float32
    targets : NDArray (N,)
        Token ids x_n, from 0 to V - 1.
    weight : float, default 1
        w.

    Returns
    -------
    (log_p, bias_gradient)
        log p_n(x_n) (N,) in nats, and the gradient of the bias (V,), both float32. A row with a logit of NaN or
        +infinity has a gradient of NaN.

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
    if not (ids.min() >= 0 and ids.max() < size):  # also refuses NaN
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


def scale_rows(product: mx.nd.NDArray, weights: mx.nd.NDArray) -> mx.nd.NDArray:
    """Multiply each row of `product` by its weight, in place.

    Parameters
    ----------
    product : NDArray (N, V), float32 or bfloat16
        As `cross_entropy` leaves it.
    weights : NDArray (N,), float32

    Returns
    -------
    NDArray (V,), float32
        The sum of the scaled rows, before they are rounded to bfloat16.

    Raises
    ------
    ValueError
        If shapes or types do not fit.
    """
    (rows, size), parts = product.shape, threads()
    if weights.shape != (rows,) or weights.dtype != np.float32 or product.dtype not in (np.float32, BFLOAT16):
        raise ValueError(f"{product.dtype} {product.shape} and weights of {weights.dtype} {weights.shape} do not fit")
    sums, scratch = mx.nd.empty((size,)), mx.nd.empty((parts, size))
    _ScaleRows.push(
        reads={"weights": weights},
        writes={"product": product, "scratch": scratch, "sums": sums},
        half=product.dtype != np.float32,
        rows=rows,
        size=size,
        parts=parts,
    )
    return sums


class _ScaleRows(Operator):
    run = function("_crossentropy", "noisin_scale_rows")
    _fields_ = [
        *((name, ARRAY) for name in ("product", "weights", "scratch", "sums")),
        *((name, NUMBER) for name in ("half", "rows", "size", "parts")),
    ]


class _CrossEntropy(Operator):
    run = function("_crossentropy", "noisin_cross_entropy")
    _fields_ = [
        *((name, ARRAY) for name in ("product", "bias", "targets", "scratch", "log_p", "bias_gradient")),
        *((name, NUMBER) for name in ("half", "rows", "size", "parts")),
        ("weight", ctypes.c_float),
    ]
