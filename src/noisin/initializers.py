"""Initialisation of recurrent weights."""

from __future__ import annotations

import mxnet as mx

RECURRENT_INITS = ("orthogonal", "identity", "uniform")


@mx.init.register
class RecurrentInit(mx.init.Initializer):
    """Initialise each gate's (hidden, hidden) block of hidden-to-hidden weights on its own.

    Parameters
    ----------
    kind : {'orthogonal', 'identity', 'uniform'}, default 'orthogonal'
    scale : float, default 0.1
        Half-width of the uniform distribution; unused by the other kinds.

    Raises
    ------
    ValueError
        For an unknown kind.
    """

    def __init__(self, kind: str = "orthogonal", scale: float = 0.1) -> None:
        if kind not in RECURRENT_INITS:
            raise ValueError(f"recurrent_init is '{kind}': it must be one of {', '.join(RECURRENT_INITS)}")
        super().__init__(kind=kind, scale=scale)
        self._kind = kind
        self._scale = scale

    def _init_weight(self, name: mx.init.InitDesc, arr: mx.nd.NDArray) -> None:
        hidden = arr.shape[1]
        for start in range(0, arr.shape[0], hidden):
            block = arr[start : start + hidden]
            if self._kind == "orthogonal":
                # MXNet's own Orthogonal draws from NumPy's global state; this follows mx.random.seed.
                block[:] = mx.nd.linalg.gelqf(mx.nd.random.normal(shape=(hidden, hidden), ctx=arr.context))[0]
            elif self._kind == "identity":
                block[:] = mx.nd.eye(hidden, ctx=arr.context)
            else:
                block[:] = mx.nd.random.uniform(-self._scale, self._scale, shape=block.shape, ctx=arr.context)
