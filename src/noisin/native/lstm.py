"""What an LSTM's step does beside its matrix product, as one operator of a graph that is traced for training.

It is twelve of MXNet's operators, and more backward, which cost several times their arithmetic. MXNet loads ours as an
extension library.
"""

from __future__ import annotations

import ctypes
from itertools import count
from types import ModuleType
from typing import Callable, List

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call
from mxnet.gluon import Parameter
from mxnet.symbol.register import _make_symbol_function

from noisin.graphs import purpose
from noisin.native.compiled import GPU_BUILD
from noisin.system.startup import compiled_part


def has_operator(F: ModuleType, weight: Parameter) -> bool:
    """Return whether a step with these weights is to use the operator: in a float32 graph for training on a CPU."""
    return F is mx.sym and purpose() == "training" and not GPU_BUILD and np.dtype(weight.dtype) == np.float32


def lstm_step(projected: mx.sym.Symbol, recurrent: mx.sym.Symbol, memory: mx.sym.Symbol) -> List[mx.sym.Symbol]:
    """Return the hidden state h_t and the memory c_t.

    Parameters
    ----------
    projected, recurrent : Symbol (batch, 4 * hidden)
        U x_t + b and W h_{t-1} + b', with the gates in Gluon's order.
    memory : Symbol (batch, hidden)
        c_{t-1}.

    Returns
    -------
    list of Symbol (batch, hidden)
    """
    return list(_OPERATOR(*map(_apart, (projected, recurrent, memory))))


def _apart(tensor: mx.sym.Symbol) -> mx.sym.Symbol:
    """Return a copy for one use, whose gradient MXNet adds to those of other uses.

    With `grad_req="add"` or eight uses of a tensor, MXNet lets operators add their gradients in place. It does not tell
    an extension's operators, which always overwrite. The attribute keeps MXNet from merging copies of one tensor.
    """
    return mx.sym.identity(tensor, attr={"__noisin_use__": str(next(_USES))})


def _load() -> Callable[..., mx.sym.Symbol]:
    # Not by `mx.library.load`, which makes all of MXNet's operators anew.
    check_call(_LIB.MXLoadLib(compiled_part("_lstm").encode(), ctypes.c_uint(False)))  # not verbose
    handle = ctypes.c_void_p()
    check_call(_LIB.NNGetOpHandle(b"noisin_lstm", ctypes.byref(handle)))
    return _make_symbol_function(handle, "noisin_lstm", "noisin_lstm")


_USES = count()
_OPERATOR = _load()
