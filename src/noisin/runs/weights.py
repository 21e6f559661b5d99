"""Reading `.params`, MXNet's container of named arrays, without its C++ parser, which trusts what a file claims.

`mx.nd.load` ends the process for a dimension count of -1, takes 2**32 x 2**32 for an empty array, and allocates for a
count of arrays before it looks for them. Here every number is held against the bytes that are there. Only what
`noisin` writes is read: named, dense float32 arrays (numbers little-endian):

    uint64 0x112, uint64 0                                          the container
    uint64 N, then N times
        uint32 0xF993FAC9, int32 0                                  an array, dense
        int32 dimensions, int64 sizes, int32 x 2 device, int32 0    its shape; where it was; float32
        float32 values
    uint64 N, then N times uint64 bytes, UTF-8                      the names
"""

from __future__ import annotations

import math
import struct
from typing import Any, Dict, Tuple

import numpy as np

_CONTAINER, _ARRAY = 0x112, 0xF993FAC9
_DENSE = _FLOAT32 = 0
_MOST_DIMENSIONS = 8  # a weight has two


def parse_arrays(content: bytes) -> Dict[str, np.ndarray]:
    """Return the arrays of a `.params` file by name, as read-only views of its contents.

    Parameters
    ----------
    content : bytes
        The whole file.

    Raises
    ------
    ValueError
        If it is anything but named dense float32 arrays of finite numbers, saying what.
    """
    reader = _Reader(content)
    if reader.take("QQ") != (_CONTAINER, 0):
        raise ValueError("it does not begin as a .params file does")
    arrays = [_array(reader) for _ in range(reader.count())]
    if reader.count() != len(arrays):
        raise ValueError("its arrays have no names")
    names = [_name(reader) for _ in arrays]
    if reader.left:
        raise ValueError(f"{reader.left} bytes are left over")
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    return dict(zip(names, arrays))


class _Reader:
    """A place in some bytes, from which no more can be taken than there is."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    @property
    def left(self) -> int:
        return len(self._content) - self._place

    def skip(self, size: int) -> int:
        """Go on by `size` bytes, and return where they begin."""
        if size > self.left:
            raise ValueError("it is truncated, or claims more than it holds")
        self._place += size
        return self._place - size

    def take(self, layout: str) -> Tuple[Any, ...]:
        return struct.unpack_from(f"<{layout}", self._content, self.skip(struct.calcsize(f"<{layout}")))

    def count(self) -> int:
        """A number of things that are still to come, each of eight bytes at the least."""
        (number,) = self.take("Q")
        if number > self.left // 8:
            raise ValueError(f"it claims to hold {number} things in {self.left} bytes")
        return number

    def floats(self, shape: Tuple[int, ...]) -> np.ndarray:
        number = math.prod(shape)
        return np.frombuffer(self._content, "<f4", number, self.skip(4 * number)).reshape(shape)

    def text(self, size: int) -> str:
        start = self.skip(size)
        return self._content[start : start + size].decode("utf-8")


def _array(reader: _Reader) -> np.ndarray:
    magic, storage, dimensions = reader.take("Iii")
    if (magic, storage) != (_ARRAY, _DENSE):
        raise ValueError("an array is not dense, or of another version of MXNet")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"an array has {dimensions} dimensions")
    shape = reader.take(f"{dimensions}q")
    if min(shape) < 1:
        raise ValueError(f"an array has the shape {shape}")
    *_, kind = reader.take("iii")
    if kind != _FLOAT32:
        raise ValueError("an array is not float32")
    values = reader.floats(shape)
    if not np.isfinite(values).all():
        raise ValueError("an array has values that are not finite")
    return values


def _name(reader: _Reader) -> str:
    (size,) = reader.take("Q")
    name = reader.text(size)
    if "\0" in name:  # where it ends for MXNet
        raise ValueError("a name has a zero byte")
    return name
