"""noisin's compiled parts, as Python sees them: their functions, MXNet's engine to run them, MXNet's memory."""

from __future__ import annotations

import ctypes
from typing import Any, Mapping, Sequence

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call

from noisin.system.startup import compiled_part

ARRAY, NUMBER = ctypes.c_void_p, ctypes.c_int64


def function(part: str, name: str, arguments: Sequence[Any] = (ARRAY, ARRAY)) -> Any:
    """The function `name` of the library `part`; ctypes gives up Python's lock while it runs.

    Parameters
    ----------
    part, name : str
    arguments : sequence of ctypes types, default those of an operator of the engine
        Of what it takes; it returns nothing.
    """
    found = getattr(ctypes.CDLL(compiled_part(part)), name)
    found.argtypes, found.restype = arguments, None
    return found


class Operator(ctypes.Structure):
    """An operator of ours for MXNet's engine: a subclass has the C file's `_fields_`, and as `run` its function."""

    run: Any

    @classmethod
    def push(cls, reads: Mapping[str, mx.nd.NDArray], writes: Mapping[str, mx.nd.NDArray], **numbers: float) -> None:
        """Have it run by the engine, in its turn: after what the arrays wait for, before what waits for them.

        The engine's threads wait awake for the next operator: threads of ours would have to share the cores with them.

        Parameters
        ----------
        reads, writes : mapping of field to NDArray
            On a CPU, each in one field only.
        **numbers
            The other fields.
        """
        fields = {**{name: address(array) for name, array in (*reads.items(), *writes.items())}, **numbers}
        assert set(fields) == {field[0] for field in cls._fields_}
        copy = _LIBC.malloc(ctypes.sizeof(cls))  # which the engine frees
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
    """Where the array's memory is, once it is computed: until then MXNet may not have given it any."""
    array.wait_to_read()
    pointer = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value or 0


def memory(array: mx.nd.NDArray) -> np.ndarray:
    """The array's own memory, once it is computed, for as long as the array lives; `asnumpy` would copy it.

    Parameters
    ----------
    array : NDArray
        float32, or bfloat16, which NumPy sees as uint16; on a CPU.
    """
    kind = ctypes.c_float if array.dtype == np.float32 else ctypes.c_uint16
    return np.ctypeslib.as_array(ctypes.cast(address(array), ctypes.POINTER(kind)), shape=array.shape)
