"""Helpers that work on arrays and on the symbols of a traced graph alike."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Dict, Iterator, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

Tensor = Union[mx.nd.NDArray, mx.sym.Symbol]
# MXNet's NumPy stand-in for bfloat16; not every MXNet function understands the string.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

_PURPOSE: ContextVar[str] = ContextVar("noisin_purpose", default="")


@contextmanager
def traced_for(what: str) -> Iterator[None]:
    """Trace graphs for one purpose only, inside a `with` block; of nested blocks, the outermost decides.

    A hybridized block is traced when it, or a block around it, is first called after `hybridize`. By default, its graph
    serves both training and prediction and loads anywhere, but it always draws its noise, with MXNet's operators.

    Parameters
    ----------
    what : {'training', 'prediction'}
        A graph for training draws Gaussian noise in compiled code, many times as fast, and draws none in predict mode;
        a float32 LSTM's step is one compiled operator beside its product. It loads only where noisin is imported. A
        graph for prediction draws no noise in either mode.

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
    """Return what a graph traced now is for: 'training', 'prediction', or '' for both."""
    return _PURPOSE.get()


def block_parameters(block: HybridBlock, like: Tensor) -> Dict[str, Tensor]:
    """Return a block's own parameters by attribute name.

    Parameters
    ----------
    block : HybridBlock
    like : NDArray or Symbol
        A symbol gives symbols; an array gives arrays on its context.

    Returns
    -------
    dict of str to NDArray or Symbol
        Without the parameters of the block's children.
    """
    if isinstance(like, mx.sym.Symbol):
        return {name: parameter.var() for name, parameter in block._reg_params.items()}
    return {name: parameter.data(like.context) for name, parameter in block._reg_params.items()}


def training_gate(F: ModuleType, like: Tensor) -> Tensor:
    """Return 1 in Gluon's train mode and 0 in predict mode, evaluated each time the graph runs.

    `autograd.is_training()` would be fixed when a hybridized graph is traced. Only Dropout asks for the mode at run
    time: on a one, with p = 1/2, it returns 0 or 2 in train mode and 1 otherwise. Its distance from 1 is the gate.

    Parameters
    ----------
    F : module
        `mxnet.nd` or `mxnet.sym`.
    like : NDArray or Symbol
        Tensor of any shape; its values are not used.

    Returns
    -------
    NDArray or Symbol
        Zeros or ones, of the shape of `like`.
    """
    return F.abs(F.Dropout(F.ones_like(like), p=0.5, mode="training") - 1)
