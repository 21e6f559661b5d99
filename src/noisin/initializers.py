"""What recurrent weights start from."""

from __future__ import annotations

from typing import Any

import mxnet as mx

RECURRENT_INITS = ("orthogonal", "identity", "uniform")


@mx.init.register
class RecurrentInit(mx.init.Initializer):
    """Initialise hidden-to-hidden weights gate by gate: orthogonal, identity, or uniform in (-scale, scale)."""

    def __init__(self, kind: str = "orthogonal", scale: float = 0.1) -> None:
        if kind not in RECURRENT_INITS:
            raise ValueError(f"recurrent_init is '{kind}': it must be one of {', '.join(RECURRENT_INITS)}")
        super().__init__(kind=kind, scale=scale)
        self._kind = kind
        self._scale = scale

    def _init_weight(self, name: Any, arr: mx.nd.NDArray) -> None:
        hidden = arr.shape[1]
        for start in range(0, arr.shape[0], hidden):
            block = arr[start : start + hidden]
            if self._kind == "orthogonal":
                # MXNet's own Orthogonal draws from NumPy's global state; this follows mx.random.seed like the rest.
                block[:] = mx.nd.linalg.gelqf(mx.nd.random.normal(shape=(hidden, hidden), ctx=arr.context))[0]
            elif self._kind == "identity":
                block[:] = mx.nd.eye(hidden, ctx=arr.context)
            else:
                block[:] = mx.nd.random.uniform(-self._scale, self._scale, shape=block.shape, ctx=arr.context)
