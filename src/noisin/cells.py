"""Recurrent cells, what regularises them, and the one factory that stacks them.

Each cell keeps Gluon's contract (`state_info`, `begin_state`, `cell(inputs, states)`, `unroll`, `reset`) and the
parameter names of the Gluon cell it extends, so that deterministic, dropout and noisy models load each other's weights.
To add a cell, extend the Gluon one with `ProjectedCell`, write its `transition`, and name it in `CELLS`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import mxnet as mx
from mxnet.gluon import rnn
from mxnet.gluon.rnn.rnn_cell import HybridRecurrentCell, ModifierCell, _format_sequence, _get_begin_state

from noisin.noise import Noise, block_parameters, training_gate

ACTIVATIONS = ("tanh", "sigmoid", "relu")
RECURRENT_INITS = ("orthogonal", "identity", "uniform")
MASKS = ("inputs", "states", "outputs")  # in the order in which VariationalDropoutCell keeps them in its state


class ProjectedCell(HybridRecurrentCell):
    r"""A cell whose input projection is separate from its recurrence, so that `unroll` does it for all steps at once.

    .. math:: z_t = f(U x_t,\; z_{t-1})

    A subclass also extends a Gluon cell, which gives it its parameters, and defines `gates`, the number of blocks of
    `hidden` rows in its weights, and `transition`.
    """

    gates = 1

    def project(self, F: Any, inputs: Any, i2h_weight: Any, i2h_bias: Any) -> Any:
        """U x + b of any number of steps: (N, input size) -> (N, gates * hidden)."""
        return F.FullyConnected(inputs, i2h_weight, i2h_bias, num_hidden=self.gates * self._hidden_size)

    def transition(
        self, F: Any, projected: Any, previous: Any, states: List[Any], h2h_weight: Any, h2h_bias: Any
    ) -> Tuple[Any, List[Any]]:
        """One step from the projected input.

        Parameters
        ----------
        projected : tensor (batch, gates * hidden)
        previous : tensor (batch, hidden)
            What the recurrent weights multiply: `states[0]`, masked where there is recurrent dropout.
        states : list of tensor (batch, hidden)
            The states as they are, hidden state first.

        Returns
        -------
        (hidden, rest)
            The new hidden state h_t and the list of the states behind it.
        """
        raise TypeError(f"{type(self).__name__} does not define transition")

    def hybrid_forward(
        self, F: Any, inputs: Any, states: List[Any], i2h_weight: Any, i2h_bias: Any, h2h_weight: Any, h2h_bias: Any
    ) -> Tuple[Any, List[Any]]:
        projected = self.project(F, inputs, i2h_weight, i2h_bias)
        hidden, rest = self.transition(F, projected, states[0], states, h2h_weight, h2h_bias)
        return hidden, [hidden] + rest

    def unroll(
        self,
        length: int,
        inputs: Any,
        begin_state: Optional[List[Any]] = None,
        layout: str = "NTC",
        merge_outputs: Optional[bool] = None,
        valid_length: Any = None,
        recurrent_mask: Any = None,
        noise: Optional[Noise] = None,
    ) -> Tuple[Any, List[Any]]:
        """Unroll over `length` steps, equal to stepping to rounding, with one product for all input projections.

        Parameters
        ----------
        length, inputs, begin_state, layout, merge_outputs, valid_length
            As in Gluon's `RecurrentCell.unroll`; outputs are merged unless `merge_outputs` is False.
        recurrent_mask : tensor (batch, hidden), optional
            Multiplies the hidden state that the recurrent weights see, the same at each step.
        noise : Noise, optional
            Perturbs the hidden state of each step; its draw for the whole sequence is made at once.

        Returns
        -------
        (outputs, states)
            Outputs in `layout`, and the states after the last step.
        """
        if valid_length is not None:
            if recurrent_mask is not None or noise is not None:
                raise ValueError("valid_length does not go with recurrent_mask or noise here: wrap the cell instead")
            return super().unroll(length, inputs, begin_state, layout, merge_outputs, valid_length)
        self.reset()
        inputs, axis, F, batch_size = _format_sequence(length, inputs, layout, True)
        if F is mx.nd and inputs.shape[axis] != length:  # else broadcasting would hide it
            raise ValueError(f"inputs of shape {inputs.shape} in layout {layout} have not {length} steps")
        states = _get_begin_state(self, F, begin_state, inputs, batch_size)
        if axis == 1:
            inputs = F.swapaxes(inputs, 0, 1)
        weights = block_parameters(self, inputs)
        projected = self.project(F, F.reshape(inputs, shape=(-3, 0)), weights["i2h_weight"], weights["i2h_bias"])
        deviations = [None] * length
        if noise is not None:
            like = F.slice_axis(projected, axis=1, begin=0, end=self._hidden_size)
            deviations = _split_steps(F, noise.deviation(F, like), length)
        outputs = []
        for step, deviation in zip(_split_steps(F, projected, length), deviations):
            previous = states[0] if recurrent_mask is None else F.broadcast_mul(states[0], recurrent_mask)
            hidden, rest = self.transition(F, step, previous, states, weights["h2h_weight"], weights["h2h_bias"])
            if noise is not None:
                hidden = noise.combine(F, hidden, deviation)
            states = [hidden] + rest
            outputs.append(hidden)
        return (outputs if merge_outputs is False else F.stack(*outputs, axis=axis)), states


def _split_steps(F: Any, sequence: Any, length: int) -> List[Any]:
    """(length * batch, units), step after step -> a list of (batch, units)."""
    # With one output MXNet returns the tensor itself, and indexing that would take its first row.
    return [sequence] if length == 1 else list(F.split(sequence, num_outputs=length, axis=0))


def _split_gates(F: Any, gates: Any, count: int) -> List[Any]:
    """(batch, count * hidden) -> `count` times (batch, hidden)."""
    # As an axis of its own: along one that is not the last, MXNet copies whole rows and not number by number.
    return F.split(F.reshape(gates, shape=(0, count, -1)), num_outputs=count, axis=1, squeeze_axis=True)


def _sigmoid(F: Any, x: Any) -> Any:
    return F.Activation(x, act_type="sigmoid")  # in vector instructions, which F.sigmoid is not


def _tanh(F: Any, x: Any) -> Any:
    return F.Activation(x, act_type="tanh")


class ElmanCell(ProjectedCell, rnn.RNNCell):
    r"""Elman's recurrent cell, the plain RNN of the paper (section 2.1).

    .. math:: h_t = f(U x_t + b_i + W h_{t-1} + b_h)

    Parameters
    ----------
    hidden_size : int
    activation : {'tanh', 'sigmoid', 'relu'}
    **kwargs
        As `mxnet.gluon.rnn.RNNCell`.
    """

    def transition(
        self, F: Any, projected: Any, previous: Any, states: List[Any], h2h_weight: Any, h2h_bias: Any
    ) -> Tuple[Any, List[Any]]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=self._hidden_size)
        return F.Activation(projected + recurrent, act_type=self._activation), []


class LSTMCell(ProjectedCell, rnn.LSTMCell):
    r"""Long short-term memory (Hochreiter and Schmidhuber, 1997); gates in Gluon's order i, f, g, o.

    .. math::
        i, f, o = \sigma(U x_t + W h_{t-1} + b), \quad g = \tanh(U x_t + W h_{t-1} + b) \\
        c_t = f c_{t-1} + i g, \quad h_t = o \tanh(c_t)

    States: h_t, then c_t. Noise and recurrent masks act on h_t.
    """

    gates = 4

    def transition(
        self, F: Any, projected: Any, previous: Any, states: List[Any], h2h_weight: Any, h2h_bias: Any
    ) -> Tuple[Any, List[Any]]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=4 * self._hidden_size)
        update, forget, candidate, output = _split_gates(F, projected + recurrent, 4)
        memory = _sigmoid(F, forget) * states[1] + _sigmoid(F, update) * _tanh(F, candidate)
        return _sigmoid(F, output) * _tanh(F, memory), [memory]


class GRUCell(ProjectedCell, rnn.GRUCell):
    r"""Gated recurrent unit (Cho et al., 2014); gates in Gluon's order r, z, n.

    .. math::
        r, u = \sigma(U x_t + W h_{t-1} + b), \quad n = \tanh(U_n x_t + b + r (W_n h_{t-1} + b')) \\
        h_t = (1 - u) n + u h_{t-1}

    A recurrent mask acts on what W multiplies, not on the h_{t-1} that u carries over.
    """

    gates = 3

    def transition(
        self, F: Any, projected: Any, previous: Any, states: List[Any], h2h_weight: Any, h2h_bias: Any
    ) -> Tuple[Any, List[Any]]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=3 * self._hidden_size)
        input_reset, input_update, input_candidate = _split_gates(F, projected, 3)
        hidden_reset, hidden_update, hidden_candidate = _split_gates(F, recurrent, 3)
        reset = _sigmoid(F, input_reset + hidden_reset)
        update = _sigmoid(F, input_update + hidden_update)
        candidate = _tanh(F, input_candidate + reset * hidden_candidate)
        return (1 - update) * candidate + update * states[0], []


CELLS: Dict[str, Type[ProjectedCell]] = {"rnn": ElmanCell, "lstm": LSTMCell, "gru": GRUCell}


class WrapperCell(ModifierCell):
    """A modifier under which a cell's weights keep the names that they have in `save_parameters` without it."""

    def _collect_params_with_prefix(self, prefix: str = "") -> Dict[str, Any]:
        named = self.base_cell._collect_params_with_prefix(prefix)
        for name, child in self._children.items():
            if child is not self.base_cell:
                named.update(child._collect_params_with_prefix(f"{prefix}.{name}" if prefix else name))
        return named

    def unroll(
        self,
        length: int,
        inputs: Any,
        begin_state: Optional[List[Any]] = None,
        layout: str = "NTC",
        merge_outputs: Optional[bool] = None,
        valid_length: Any = None,
    ) -> Tuple[Any, List[Any]]:
        """As `ProjectedCell.unroll`: noise of all steps in one draw, masks as `begin_state` holds them."""
        if valid_length is not None:
            return super().unroll(length, inputs, begin_state, layout, merge_outputs, valid_length)
        return self._unroll(length, inputs, begin_state, layout, merge_outputs)

    def _unroll(
        self, length: int, inputs: Any, begin_state: Optional[List[Any]], layout: str, merge_outputs: Optional[bool]
    ) -> Tuple[Any, List[Any]]:
        raise TypeError(f"{type(self).__name__} does not define _unroll")


class NoisyCell(WrapperCell):
    r"""Inject unbiased noise into the hidden state of a cell: NOISIN (paper, section 3).

    .. math:: h_t = f(x_t, z_{t-1}), \quad z_t \sim noise(h_t, \gamma), \quad E[z_t | z_{t-1}] = h_t

    One draw a unit and step: the output and the state that the next step sees are the same z_t. The noise acts in
    Gluon's train mode and is off in predict mode.

    Parameters
    ----------
    base_cell : ProjectedCell
    noise : Noise

    Inputs:
        - **inputs**: (batch, input size).
        - **states**: the base cell's list; the hidden state first, (batch, hidden).

    Outputs:
        - **output**: z_t, (batch, hidden).
        - **next states**: z_t, then the base cell's other states, untouched.
    """

    def __init__(self, base_cell: ProjectedCell, noise: Noise) -> None:
        super().__init__(base_cell)
        self.noise = noise

    def _alias(self) -> str:
        return "noisy"

    def begin_state(self, batch_size: int = 0, func: Callable = mx.nd.zeros, **kwargs: Any) -> List[Any]:
        """Zero states; `func` defaults to `nd.zeros` as it does in a plain cell."""
        return super().begin_state(func=func, batch_size=batch_size, **kwargs)

    def hybrid_forward(self, F: Any, inputs: Any, states: List[Any]) -> Tuple[Any, List[Any]]:
        hidden, states = self.base_cell(inputs, states)
        noisy = self.noise(hidden)
        return noisy, [noisy] + states[1:]

    def _unroll(
        self, length: int, inputs: Any, begin_state: Optional[List[Any]], layout: str, merge_outputs: Optional[bool]
    ) -> Tuple[Any, List[Any]]:
        with _unmodified(self.base_cell):
            return self.base_cell.unroll(length, inputs, begin_state, layout, merge_outputs, noise=self.noise)


class VariationalDropoutCell(WrapperCell):
    r"""Dropout with one mask a sequence on inputs, recurrent state and outputs (Gal and Ghahramani, 2016).

    .. math:: h_t = f(m_x x_t,\; m_h h_{t-1}), \quad y_t = m_y h_t, \quad m \sim Bernoulli(1 - p) / (1 - p)

    The masks are the last three states: `begin_state` draws them, every step and `unroll` use and return them
    unchanged, and `begin_sequence` draws new ones for the next sequence. Nothing random stays on the cell. They act in
    Gluon's train mode and are ignored in predict mode.

    Parameters
    ----------
    base_cell : ProjectedCell
        With its input size given (a mask needs a shape before the first input is seen).
    inputs, states, outputs : float, default 0
        Dropout rates p.

    Raises
    ------
    ValueError
        For a rate outside [0, 1).
    """

    def __init__(
        self, base_cell: ProjectedCell, inputs: float = 0.0, states: float = 0.0, outputs: float = 0.0
    ) -> None:
        super().__init__(base_cell)
        self._rates = (inputs, states, outputs)
        for name, rate in zip(MASKS, self._rates):
            if not 0 <= rate < 1:
                raise ValueError(f"dropout rate of {name} is {rate}: it must be at least 0 and below 1")

    def _alias(self) -> str:
        return "vardrop"

    def _mask_shapes(self, batch_size: int) -> List[Tuple[int, int]]:
        hidden = self.base_cell._hidden_size
        return [(batch_size, self.base_cell._input_size), (batch_size, hidden), (batch_size, hidden)]

    def state_info(self, batch_size: int = 0) -> List[Dict[str, Any]]:
        masks = [{"shape": shape, "__layout__": "NC"} for shape in self._mask_shapes(batch_size)]
        return self.base_cell.state_info(batch_size) + masks

    def begin_state(self, batch_size: int = 0, func: Callable = mx.nd.zeros, **kwargs: Any) -> List[Any]:
        """Zero states and freshly drawn masks."""
        with _unmodified(self.base_cell):
            states = self.base_cell.begin_state(batch_size=batch_size, func=func, **kwargs)
        context = kwargs.get("ctx")
        return states + [
            draw_mask(shape, rate, context) for shape, rate in zip(self._mask_shapes(batch_size), self._rates)
        ]

    def begin_sequence(self, states: List[Any]) -> List[Any]:
        """The same carried states with new masks: call it where a new sequence (a BPTT segment) begins."""
        carried = states[: -len(MASKS)]
        batch_size, context = carried[0].shape[0], carried[0].context
        shapes = self._mask_shapes(batch_size)
        return carried + [draw_mask(shape, rate, context) for shape, rate in zip(shapes, self._rates)]

    def hybrid_forward(self, F: Any, inputs: Any, states: List[Any]) -> Tuple[Any, List[Any]]:
        # One step is a sequence of one: `unroll` applies each mask where it belongs.
        outputs, states = self.unroll(1, F.expand_dims(inputs, axis=0), states, layout="TNC", merge_outputs=False)
        return outputs[0], states

    def _unroll(
        self, length: int, inputs: Any, begin_state: Optional[List[Any]], layout: str, merge_outputs: Optional[bool]
    ) -> Tuple[Any, List[Any]]:
        inputs, axis, F, batch_size = _format_sequence(length, inputs, layout, True)
        if begin_state is None and F is mx.sym:
            raise ValueError("masks cannot be drawn inside a graph: give begin_state, made by cell.begin_state")
        begin_state = _get_begin_state(self, F, begin_state, inputs, batch_size)
        states, masks = begin_state[: -len(MASKS)], begin_state[-len(MASKS) :]
        input_mask, recurrent_mask, output_mask = (
            active_mask(F, mask) if rate else None for mask, rate in zip(masks, self._rates)
        )
        if input_mask is not None:
            inputs = F.broadcast_mul(inputs, F.expand_dims(input_mask, axis=axis))
        with _unmodified(self.base_cell):
            outputs, states = self.base_cell.unroll(length, inputs, states, layout, True, recurrent_mask=recurrent_mask)
        if output_mask is not None:
            outputs = F.broadcast_mul(outputs, F.expand_dims(output_mask, axis=axis))
        return _format_sequence(length, outputs, layout, merge_outputs)[0], states + masks


def draw_mask(shape: Tuple[int, ...], rate: float, context: Optional[mx.Context] = None) -> mx.nd.NDArray:
    """A dropout mask of entries 0 or 1 / (1 - rate), drawn from ones (never from the data) in either Gluon mode."""
    ones = mx.nd.ones(shape, ctx=context)
    return mx.nd.Dropout(ones, p=rate, mode="always") if rate else ones


def active_mask(F: Any, mask: Any) -> Any:
    """The (rows, units) mask in train mode, ones in predict mode, decided when the graph runs."""
    one = F.slice(mask, begin=(0, 0), end=(1, 1))
    return 1 + F.broadcast_mul(mask - 1, training_gate(F, one))


@contextmanager
def _unmodified(cell: HybridRecurrentCell) -> Iterator[None]:
    """Let a wrapper use its base cell, which Gluon otherwise refuses to a caller as already modified."""
    cell._modified = False
    try:
        yield
    finally:
        cell._modified = True


def make_cells(
    cell: str,
    hidden: int,
    layers: int,
    input_size: int,
    activation: Optional[str] = None,
    noises: Optional[Sequence[Noise]] = None,
    dropout: Optional[Sequence[Dict[str, float]]] = None,
    recurrent_init: str = "orthogonal",
    init_scale: float = 0.1,
    forget_bias: float = 0.0,
    prefix: str = "",
) -> CellStack:
    """Stack `layers` cells, bottom first: the one place where a configuration becomes cells.

    Parameters
    ----------
    cell : {'rnn', 'lstm', 'gru'}
    hidden, layers, input_size : int
    activation : {'tanh', 'sigmoid', 'relu'}
        Of the Elman RNN only.
    noises : sequence of Noise, optional
        One a layer: NOISIN.
    dropout : sequence of dict with 'inputs', 'states', 'outputs', optional
        Rates of variational dropout, one dict a layer.
    recurrent_init : {'orthogonal', 'identity', 'uniform'}
        Of each hidden-to-hidden matrix (of each gate's, in LSTM and GRU).
    init_scale : float, default 0.1
        Half-width of the uniform distribution that input weights start from.
    forget_bias : float, default 0
        Where the LSTM's forget-gate bias starts.
    """
    if noises is not None and dropout is not None:
        raise ValueError("a cell takes noise or variational dropout, not both")
    stack = CellStack(prefix=prefix)
    with stack.name_scope():
        for layer in range(layers):
            options: Dict[str, Any] = {
                "i2h_weight_initializer": mx.init.Uniform(init_scale),
                "h2h_weight_initializer": RecurrentInit(recurrent_init, init_scale),
                "input_size": input_size if layer == 0 else hidden,
                "prefix": f"l{layer}_",
            }
            if cell == "rnn":
                options["activation"] = activation
            if cell == "lstm":
                options["i2h_bias_initializer"] = mx.init.LSTMBias(forget_bias)
            base = CELLS[cell](hidden, **options)
            if noises is not None:
                base = NoisyCell(base, noises[layer])
            elif dropout is not None:
                base = VariationalDropoutCell(base, **dropout[layer])
            stack.add(base)
    return stack


class CellStack(rnn.HybridSequentialRNNCell):
    """Cells on top of one another: Gluon's sequential cell, and `begin_sequence` for cells with masks."""

    def __iter__(self) -> Iterator[HybridRecurrentCell]:
        return iter(self._children.values())

    def begin_sequence(self, states: List[Any]) -> List[Any]:
        """The same carried states with new masks in every cell that has them."""
        renewed: List[Any] = []
        for cell in self:
            own = states[len(renewed) : len(renewed) + len(cell.state_info())]
            renewed += cell.begin_sequence(own) if isinstance(cell, VariationalDropoutCell) else own
        return renewed


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
