"""Access to noisin's compiled parts: their functions, MXNet's engine that runs them, and MXNet's memory."""

from __future__ import annotations

import ctypes
from typing import Callable, Mapping, Sequence

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call

from noisin.system.startup import compiled_part

ARRAY, NUMBER = ctypes.c_void_p, ctypes.c_int64
# With a GPU build, a tensor may lie on the GPU, and a traced graph does not know where.
GPU_BUILD = mx.runtime.Features().is_enabled("CUDA")


def function(part: str, name: str, arguments: Sequence[type] = (ARRAY, ARRAY)) -> Callable[..., None]:
    """Load a C function; ctypes releases Python's global lock while it runs.

    Parameters
    ----------
    part : str
        The library, e.g. '_normals'.
    name : str
        The function, which returns nothing.
    arguments : sequence of ctypes types, default those of an operator of MXNet's engine
        Types of its arguments.

    Returns
    -------
    ctypes function

    Raises
    ------
    ImportError
        If the library is not installed.
    """
    found = getattr(ctypes.CDLL(compiled_part(part)), name)
    found.argtypes, found.restype = arguments, None
    return found


class Operator(ctypes.Structure):
    """An operator for MXNet's engine; a subclass defines `_fields_`, as in the C file, and `run`, its C function."""

    run: Callable[..., None]

    @classmethod
    def push(cls, reads: Mapping[str, mx.nd.NDArray], writes: Mapping[str, mx.nd.NDArray], **numbers: float) -> None:
        """Queue the operator in MXNet's engine, which orders it among the other operators on the same arrays.

        MXNet's engine threads busy-wait, so a second thread pool would compete with them for cores.

        Parameters
        ----------
        reads, writes : mapping of str to NDArray
            Arrays by field; on a CPU, each in one field only.
        **numbers
            The other fields.
        """
        fields = {**{name: address(array) for name, array in (*reads.items(), *writes.items())}, **numbers}
        assert set(fields) == {field[0] for field in cls._fields_}
        copy = _LIBC.malloc(ctypes.sizeof(cls))  # the engine frees it
        ctypes.memmove(copy, ctypes.byref(cls(**fields)), ctypes.sizeof(cls))
        handles = [(ctypes.c_void_p * len(part))(*(a.handle for a in part.values())) for part in (reads, writes)]
        check_call(
            _LIB.MXEnginePushSyncND(
                *(cls.run, ctypes.c_void_p(copy), _LIBC.free, _CPU),
                *(handles[0], len(reads), handles[1], len(writes)),
                *(None, 0, cls.__name__.encode()),
            )
        )


_LIBC = ctypes.CDLL(None)
_LIBC.malloc.argtypes, _LIBC.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
_CPU = (ctypes.c_int32 * 2)(mx.cpu().device_typeid, 0)  # MXNet's Context


def address(array: mx.nd.NDArray) -> int:
    """Wait until the array is computed and return its memory's address; earlier, it may have no memory."""
    array.wait_to_read()
    pointer = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value or 0


def memory(array: mx.nd.NDArray) -> np.ndarray:
    """Wait until the array is computed and return a view of its memory; `asnumpy` would copy it.

    Parameters
    ----------
    array : NDArray
        float32 or bfloat16, on a CPU. It must outlive the view.

    Returns
    -------
    array
        Of the same shape; float32, or uint16 for bfloat16.
    """
    kind = ctypes.c_float if array.dtype == np.float32 else ctypes.c_uint16
    return np.ctypeslib.as_array(ctypes.cast(address(array), ctypes.POINTER(kind)), shape=array.shape)
