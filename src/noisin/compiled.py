"""noisin's compiled parts, as Python sees them: their functions, and the memory of MXNet's arrays."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Sequence

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call

from noisin._environment import compiled_part, threads

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


def in_parts(size: int, run: Callable[[int, int, int], None], least: int = 1) -> None:
    """Do a piece of work in parts, one a thread, at the same time.

    Parameters
    ----------
    size : int
        Of the work.
    run : callable
        Is given the number of the part, where it begins and where it ends; not called for an empty part.
    least : int, default 1
        Of the work that another thread is worth.
    """
    count = max(1, min(threads(), size // least))
    bounds = [size * part // count for part in range(count + 1)]
    others = [_POOL.submit(run, part, *bounds[part : part + 2]) for part in range(1, count)]
    if size:
        run(0, *bounds[:2])
    for other in others:
        other.result()


_POOL = ThreadPoolExecutor(threads(), thread_name_prefix="noisin")


def memory(array: mx.nd.NDArray, write: bool = False) -> np.ndarray:
    """The array's own memory, once it is computed, for as long as the array lives; `asnumpy` would copy it.

    Parameters
    ----------
    array : NDArray
        float32, or bfloat16, which NumPy sees as uint16; on a CPU.
    write : bool, default False
        Wait until nothing reads the array any more, too.
    """
    check_call((_LIB.MXNDArrayWaitToWrite if write else _LIB.MXNDArrayWaitToRead)(array.handle))
    pointer = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    kind = ctypes.c_float if array.dtype == np.float32 else ctypes.c_uint16
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), shape=array.shape)
