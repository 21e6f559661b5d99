"""Adam, SGD and the clipping trainer.

On a CPU, compiled code does the updates: bit for bit as MXNet does them, in a fraction of the time.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, Dict, Optional, Sequence, Type

import mxnet as mx
import numpy as np
from mxnet import gluon

from noisin.native.compiled import ARRAY, NUMBER, Operator, function


class Adam(mx.optimizer.Adam):
    r"""MXNet's Adam (Kingma and Ba, 2015), with the same parameters and states.

    .. math::
        g \leftarrow c\, g + \lambda w, \quad m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow w - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt{v} + \epsilon}

    Here c is `rescale_grad`, lambda the weight decay and eta the learning rate.
    """

    def update(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: Sequence[mx.nd.NDArray]) -> None:
        """Update a weight in place from its gradient and its state (mean, variance), all of one shape."""
        if not _in_memory(self, weight, grad):
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        t = self._index_update_count[index]
        rate = self._get_lr(index) * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        _Adam.push(
            reads={"gradient": grad},
            writes={"weight": weight, "mean": state[0], "variance": state[1]},
            size=weight.size,
            rate=rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            decay=self._get_wd(index),
            rescale=self.rescale_grad,
        )


class SGD(mx.optimizer.SGD):
    r"""MXNet's stochastic gradient descent, with the same parameters.

    .. math:: w \leftarrow w - \eta (c\, g + \lambda w)

    Here c is `rescale_grad`, lambda the weight decay and eta the learning rate.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.aggregate_num = 0  # one weight at a time

    # A trainer calls this method. Adam's calls `update`; MXNet's SGD does not.
    def update_multi_precision(
        self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: Optional[mx.nd.NDArray]
    ) -> None:
        """Update a weight in place from its gradient and, with momentum, its state, all of one shape."""
        if self.momentum or not _in_memory(self, weight, grad):
            super().update_multi_precision(index, weight, grad, state)
            return
        self._update_count(index)
        _SGD.push(
            reads={"gradient": grad},
            writes={"weight": weight},
            size=weight.size,
            rate=self._get_lr(index),
            decay=self._get_wd(index),
            rescale=self.rescale_grad,
        )


OPTIMIZERS: Dict[str, Type[mx.optimizer.Optimizer]] = {"adam": Adam, "sgd": SGD}


class Diverged(Exception):
    """Training diverged: e.g. the loss or its gradient is not finite."""


class ClippingTrainer(gluon.Trainer):
    r"""A Gluon trainer that clips the gradient's global norm and refuses a norm that is not finite.

    .. math:: g \leftarrow g \min(1, c / \|g\|)

    The factor goes into the optimizer's own rescaling, which costs nothing; `gluon.utils.clip_global_norm` would pass
    over all gradients once more. The norm is checked before the update, so that weights stay finite.

    Parameters
    ----------
    params : ParameterDict
        On one context.
    optimizer : mxnet.optimizer.Optimizer
    clip : float
        c, largest norm of the gradient divided by the batch size (paper: 5).
    """

    def __init__(self, params: gluon.ParameterDict, optimizer: mx.optimizer.Optimizer, clip: float) -> None:
        super().__init__(params, optimizer, kvstore=None)
        self._clip = clip

    def step(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        """Update all parameters from their gradients, which are divided by `batch_size` and clipped.

        Parameters
        ----------
        batch_size : int
            Number of sequences that the loss is summed over.
        ignore_stale_grad : bool, default False
            As in `gluon.Trainer`.

        Raises
        ------
        Diverged
            If the norm is not finite; the weights are then unchanged.
        """
        norm = self._global_norm() / batch_size
        if not norm < math.inf:  # also catches NaN
            raise Diverged(f"the gradient's norm is {norm}")
        super().step(batch_size * max(1.0, norm / self._clip), ignore_stale_grad)

    def _global_norm(self) -> float:
        flat = [p.list_grad()[0].reshape(-1) for p in self._params if p.grad_req != "null"]
        squares = mx.nd.concat(*[mx.nd.dot(gradient, gradient) for gradient in flat], dim=0)
        norm = math.sqrt(sum(map(float, squares.asnumpy())))  # one transfer for all parameters
        if norm == math.inf:  # float32 cannot hold the squares, but float64 may
            norm = math.hypot(*(np.linalg.norm(gradient.asnumpy().astype(np.float64)) for gradient in flat))
        return norm


def _in_memory(optimizer: mx.optimizer.Optimizer, *arrays: mx.nd.NDArray) -> bool:
    """Return whether compiled code can do this update: dense float32 arrays on a CPU, no clipping of elements."""
    return optimizer.clip_gradient is None and all(
        array.context.device_type == "cpu" and array.dtype == np.float32 and array.stype == "default"
        for array in arrays
    )


class _Adam(Operator):
    run = function("_updates", "noisin_adam")
    _fields_ = [
        *((name, ARRAY) for name in ("weight", "mean", "variance", "gradient")),
        ("size", NUMBER),
        *((name, ctypes.c_float) for name in ("rate", "beta1", "beta2", "epsilon", "decay", "rescale")),
    ]


class _SGD(Operator):
    run = function("_updates", "noisin_sgd")
    _fields_ = [
        *((name, ARRAY) for name in ("weight", "gradient")),
        ("size", NUMBER),
        *((name, ctypes.c_float) for name in ("rate", "decay", "rescale")),
    ]
