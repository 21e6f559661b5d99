"""Standard normal draws in compiled code on a CPU, because MXNet draws them element by element."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import List, Sequence, Tuple

import mxnet as mx
import numpy as np

from noisin.graphs import Tensor, purpose
from noisin.native import compiled
from noisin.native.compiled import ARRAY, GPU_BUILD, NUMBER

Arrays = Sequence[mx.nd.NDArray]
Shapes = List[List[int]]


def normal_like(F: ModuleType, like: Tensor) -> Tensor:
    """Draw standard normals, independently for every element.

    The draws follow `mx.random.seed`, because compiled code takes its key from MXNet's generator. A graph has the
    compiled code only if it is traced for training; in predict mode it then returns zeros.

    Parameters
    ----------
    F : module
        `mxnet.nd` or `mxnet.sym`.
    like : NDArray or Symbol
        Tensor of any shape; its values are not used, and no gradient flows into it.

    Returns
    -------
    NDArray or Symbol
        Of the shape and type of `like`; drawn as float32.
    """
    if GPU_BUILD or (F is mx.sym and purpose() != "training"):
        return F.random.normal_like(like)
    key = F.random.uniform(shape=(4,))
    # The gradient is blocked before the operator, so that a backward pass does not reach the operator.
    return F.Custom(key, F.BlockGrad(like), op_type="noisin_normals", off_in_prediction=F is mx.sym)


def fill_normals(array: np.ndarray, key: int) -> None:
    """Fill an array with the standard normals that belong to a key.

    Parameters
    ----------
    array : array, contiguous float32
    key : int
        From 0 to 2^64 - 1; equal keys give equal draws.
    """
    _FILL(array.ctypes.data, array.size, key & 0xFFFFFFFF, key >> 32)


class _Normals(mx.operator.CustomOp):
    def __init__(self, off_in_prediction: bool) -> None:
        super().__init__()
        self._off_in_prediction = off_in_prediction

    def forward(self, is_train: bool, req: List[str], in_data: Arrays, out_data: Arrays, aux: Arrays) -> None:
        if self._off_in_prediction and not is_train:
            out_data[0][:] = 0
            return
        # A uniform draw of MXNet's has 24 random bits; the 16 highest of each of four draws are the key.
        words = (in_data[0].asnumpy().astype(np.float64) * 2**16).astype(np.uint16)
        key, out = int.from_bytes(words.tobytes(), "little"), out_data[0]
        if out.dtype == np.float32:
            fill_normals(compiled.memory(out), key)
        else:
            draws = np.empty(out.shape, np.float32)
            fill_normals(draws, key)
            out[:] = draws

    def backward(
        self, req: List[str], out_grad: Arrays, in_data: Arrays, out_data: Arrays, in_grad: Arrays, aux: Arrays
    ) -> None:
        for write, gradient in zip(req, in_grad):
            self.assign(gradient, write, 0)  # MXNet's own backward does nothing and leaves uninitialised memory


@mx.operator.register("noisin_normals")
class _NormalsOperator(mx.operator.CustomOpProp):
    """(key, like) -> draws of the shape of `like`."""

    def __init__(self, off_in_prediction: str = "False", **_attributes: str) -> None:
        # Inside `foreach` and attribute scopes, MXNet passes all attributes of the node (apache/mxnet#8914).
        super().__init__(need_top_grad=False)
        self._off_in_prediction = off_in_prediction == "True"

    def list_arguments(self) -> List[str]:
        return ["key", "like"]

    def infer_shape(self, in_shape: Shapes) -> Tuple[Shapes, Shapes, Shapes]:
        return in_shape, [in_shape[1]], []

    def infer_type(self, in_type: List[type]) -> Tuple[List[type], List[type], List[type]]:
        return in_type, [in_type[1]], []

    def create_operator(self, ctx: mx.Context, in_shapes: Shapes, in_dtypes: List[type]) -> mx.operator.CustomOp:
        return _Normals(self._off_in_prediction)


_FILL = compiled.function("_normals", "noisin_normals", [ARRAY, NUMBER, ctypes.c_uint32, ctypes.c_uint32])
