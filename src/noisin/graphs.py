"""What serves arrays and the symbols of a traced graph alike."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Dict, Iterator, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

Tensor = Union[mx.nd.NDArray, mx.sym.Symbol]
# MXNet names bfloat16 by this NumPy stand-in; the string is not understood everywhere.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

_PURPOSE: ContextVar[str] = ContextVar("noisin_purpose", default="")


@contextmanager
def traced_for(what: str) -> Iterator[None]:
    """Let the graphs that are traced inside serve one purpose only; within another `traced_for`, the outer one counts.

    A hybridized block is traced when it, or a block around it, is first called after `hybridize`. By default its graph
    serves training and prediction alike and loads anywhere, but always draws its noise, by MXNet's operators.

    Parameters
    ----------
    what : {'training', 'prediction'}
        For training, Gaussian noise is drawn in compiled code, many times as fast, and not at all in predict mode; such
        a graph needs noisin to be loaded. For prediction, no noise is drawn in either mode.

    Raises
    ------
    ValueError
        For another purpose.

    Examples
    --------
    >>> from mxnet import nd
    >>> from noisin.noise import Noise
    >>> network = Noise("gaussian", gamma=0.5)
    >>> network.initialize()
    >>> network.hybridize()
    >>> with traced_for("prediction"):
    ...     outputs = network(nd.ones((2, 3)))  # `network.export` now writes a graph without noise
    """
    if what not in ("training", "prediction"):
        raise ValueError(f"a graph is traced for '{what}': it must be training or prediction")
    token = _PURPOSE.set(purpose() or what)
    try:
        yield
    finally:
        _PURPOSE.reset(token)


def purpose() -> str:
    """Return what a graph traced now is for: 'training', 'prediction' or, for both, ''."""
    return _PURPOSE.get()


def block_parameters(block: HybridBlock, like: Tensor) -> Dict[str, Tensor]:
    """Return the block's own parameters by attribute name: symbols in a traced graph, else arrays where `like` lies."""
    if isinstance(like, mx.sym.Symbol):
        return {name: parameter.var() for name, parameter in block._reg_params.items()}
    return {name: parameter.data(like.context) for name, parameter in block._reg_params.items()}


def training_gate(F: Any, like: Tensor) -> Tensor:
    """Return 1 in Gluon's train mode and 0 in predict mode, of the shape of `like`, decided each time the graph runs.

    `autograd.is_training()` would be fixed when a hybridized graph is traced. Dropout is the one operator that asks at
    run time: on a one, with p = 1/2, it returns 0 or 2 in training and 1 otherwise, so its distance from 1 is the gate.
    """
    return F.abs(F.Dropout(F.ones_like(like), p=0.5, mode="training") - 1)
