"""The training step: forward and backward through one segment of the text, clipping, and the update."""

from __future__ import annotations

import math
from typing import Any, List

import mxnet as mx
import numpy as np
from mxnet import gluon

from noisin.config import Config
from noisin.model import LanguageModel
from noisin.objective import AveragedLikelihood, FusedLikelihood
from noisin.optimizers import OPTIMIZERS


class Diverged(Exception):
    """The loss or its gradient stopped being a finite, sensible number."""


class ClippingTrainer(gluon.Trainer):
    r"""A Gluon trainer that clips the gradient's global norm, and refuses one that is not finite.

    .. math:: g \leftarrow g \min(1, c / \|g\|)

    The factor goes into the optimizer's own rescaling, which costs nothing, where `gluon.utils.clip_global_norm` passes
    over all gradients once more. The norm is read before the update, so that weights stay finite.

    Parameters
    ----------
    params
        As in `gluon.Trainer`.
    optimizer : mxnet.optimizer.Optimizer
    clip : float
        c, the largest norm of the gradient after its division by the batch size (paper: 5).

    Raises
    ------
    Diverged
        By `step`, if the norm is not finite; the weights are then what they were before.
    """

    def __init__(self, params: Any, optimizer: mx.optimizer.Optimizer, clip: float) -> None:
        super().__init__(params, optimizer, kvstore=None)
        self._clip = clip

    def step(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        norm = self._global_norm() / batch_size
        if not norm < math.inf:  # also catches NaN
            raise Diverged(f"the gradient's norm is {norm}")
        super().step(batch_size * max(1.0, norm / self._clip), ignore_stale_grad)

    def _global_norm(self) -> float:
        flat = [p.list_grad()[0].reshape(-1) for p in self._params if p.grad_req != "null"]
        squares = mx.nd.concat(*[mx.nd.dot(gradient, gradient) for gradient in flat], dim=0)
        norm = math.sqrt(sum(map(float, squares.asnumpy())))  # one look at the device, whatever the parameters
        if norm == math.inf:  # float32 cannot hold the squares; perhaps float64 can
            norm = math.hypot(*(np.linalg.norm(gradient.asnumpy().astype(np.float64)) for gradient in flat))
        return norm


class TrainingStep:
    """Train a model on one segment after the other, carrying its states on (truncated backpropagation through time).

    Parameters
    ----------
    model : LanguageModel
        Initialised on `device`.
    config : Config
        Its optimizer, learning rate, weight decay, clip, batch size, unroll, samples and dtype.
    device : mxnet.Context
    """

    def __init__(self, model: LanguageModel, config: Config, device: mx.Context) -> None:
        self._model, self._device, self._batch_size = model, device, config.batch_size
        kind = FusedLikelihood if device.device_type == "cpu" else AveragedLikelihood
        self._objective = kind(model, config.unroll, config.samples, config.dtype)
        self._objective.hybridize(static_alloc=True, static_shape=True)
        optimizer = OPTIMIZERS[config.optimizer](learning_rate=config.learning_rate, wd=config.weight_decay)
        self.trainer = ClippingTrainer(model.collect_params(), optimizer, config.clip)
        self.begin()

    def begin(self) -> None:
        """Start from zero states: the next segment is the first of the text."""
        self._states: List[Any] = self._objective.begin_state(self._batch_size, self._device)

    def __call__(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Update the weights once.

        Parameters
        ----------
        inputs, targets : array (T, B)
            Token ids.

        Returns
        -------
        float
            The loss before the update, summed over all words.

        Raises
        ------
        Diverged
            If the gradient is not finite; the weights are then left as they were.
        """
        states = self._model.begin_sequence(self._states)
        inputs, targets = (mx.nd.array(ids, ctx=self._device) for ids in (inputs, targets))
        loss, self._states = self._objective.backward(inputs, targets, states)
        self.trainer.step(self._batch_size)
        return loss
