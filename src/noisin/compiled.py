"""noisin's compiled parts, as Python sees them: their functions, and the memory of MXNet's arrays."""

from __future__ import annotations

import ctypes
from typing import Any, Sequence

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call

from noisin._environment import compiled_part

ARRAY, NUMBER = ctypes.c_void_p, ctypes.c_int64


def function(part: str, name: str, arguments: Sequence[Any]) -> Any:
    """The function `name` of the library made of `part`.c; ctypes gives up Python's lock while it runs.

    Parameters
    ----------
    part, name : str
    arguments : sequence of ctypes types
        Of what it takes; it returns nothing.
    """
    found = getattr(ctypes.CDLL(compiled_part(part)), name)
    found.argtypes, found.restype = arguments, None
    return found


def memory(array: mx.nd.NDArray) -> np.ndarray:
    """The array's own memory, once it is computed, for as long as the array lives; `asnumpy` would copy it."""
    array.wait_to_read()
    pointer = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    kind = ctypes.c_float if array.dtype == np.float32 else ctypes.c_uint16
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), shape=array.shape)
