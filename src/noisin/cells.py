"""Recurrent cells and their stack: drop-ins for Gluon's.

Each cell keeps Gluon's contract (`state_info`, `begin_state`, `cell(inputs, states)`, `unroll`, `reset`) and the
parameter names of the Gluon cell that it extends. To add a cell, extend the Gluon one with `ProjectedCell`, write its
`transition`, and name it in `CELLS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

import mxnet as mx
from mxnet.gluon import rnn
from mxnet.gluon.parameter import DeferredInitializationError
from mxnet.gluon.rnn.rnn_cell import HybridRecurrentCell, _format_sequence, _get_begin_state

from noisin.graphs import Tensor, block_parameters
from noisin.initializers import RecurrentInit

ACTIVATIONS = ("tanh", "sigmoid", "relu")

States = List[Tensor]
Outputs = Union[Tensor, List[Tensor]]


@dataclass
class Hooks:
    """What acts on a cell while it is unrolled, each list in its order; empty, as by default, nothing does.

    Attributes
    ----------
    inputs : list of function
        On the whole sequence (T, batch, input size), before the cell.
    recurrent : list of function
        On the hidden state (batch, hidden) that the recurrent weights multiply, at each step.
    hidden : list
        On the new hidden state, of each step: `deviation(F, like)` draws, and `combine(F, hidden, deviation)` applies.
        One draw acts on the output and on the state that the next step sees.
    outputs : list of function
        On the whole sequence of outputs (T, batch, hidden), after the cell; not on the states.
    """

    inputs: List[Callable[[Tensor], Tensor]] = field(default_factory=list)
    recurrent: List[Callable[[Tensor], Tensor]] = field(default_factory=list)
    hidden: List[Any] = field(default_factory=list)
    outputs: List[Callable[[Tensor], Tensor]] = field(default_factory=list)


class SequenceCell(HybridRecurrentCell):
    """A cell that is unrolled as a whole where it can be: a subclass defines `sequence`."""

    def sequence(self, F: Any, length: int, inputs: Tensor, states: States) -> Tuple[Outputs, States]:
        """Run all steps.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        length : int
        inputs : tensor (T, batch, input size)
        states : list of tensor

        Returns
        -------
        (outputs, states)
            A list of T outputs (batch, hidden) or one tensor (T, batch, hidden), and the states after the last step.
        """
        raise TypeError(f"{type(self).__name__} does not define sequence")

    def first_states(self, F: Any, inputs: Tensor) -> States:
        """Return the states that a sequence (T, batch, input size) begins from where none are given."""
        return _get_begin_state(self, F, None, inputs, inputs.shape[1] if F is mx.nd else 0)

    def unroll(
        self,
        length: int,
        inputs: Outputs,
        begin_state: Optional[States] = None,
        layout: str = "NTC",
        merge_outputs: Optional[bool] = None,
        valid_length: Optional[Tensor] = None,
    ) -> Tuple[Outputs, States]:
        """Unroll over `length` steps: as Gluon's `unroll`, and equal to stepping to rounding.

        Returns
        -------
        (outputs, states)
            Outputs, a list unless `merge_outputs` is true, and the states after the last step.

        Raises
        ------
        ValueError
            If the inputs have another number of steps.
        """
        if valid_length is not None:
            return super().unroll(length, inputs, begin_state, layout, merge_outputs, valid_length)
        self.reset()
        inputs, _, F, _ = _format_sequence(length, inputs, "TNC", True, in_layout=layout)
        if F is mx.nd and inputs.shape[0] != length:  # else broadcasting would hide it
            raise ValueError(f"inputs in layout {layout} have {inputs.shape[0]} steps: {length} expected")
        states = self.first_states(F, inputs) if begin_state is None else begin_state
        outputs, states = self.sequence(F, length, inputs, states)
        if not isinstance(outputs, list):
            outputs = _format_sequence(length, outputs, layout, bool(merge_outputs), in_layout="TNC")[0]
        elif merge_outputs:
            outputs = F.stack(*outputs, axis=layout.find("T"))
        return outputs, states


class ProjectedCell(SequenceCell):
    r"""A cell whose input projection is separate from its recurrence, so that `unroll` does it for all steps at once.

    .. math:: z_t = f(U x_t,\; z_{t-1})

    A subclass also extends a Gluon cell, which gives it its parameters, and defines `gates`, the number of blocks of
    `hidden` rows in its weights, and `transition`.
    """

    gates = 1

    def project(self, F: Any, inputs: Tensor, i2h_weight: Tensor, i2h_bias: Tensor) -> Tensor:
        """U x + b of any number of steps: (N, input size) -> (N, gates * hidden)."""
        return F.FullyConnected(inputs, i2h_weight, i2h_bias, num_hidden=self.gates * self._hidden_size)

    def transition(
        self, F: Any, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        """Do one step from the projected input.

        Parameters
        ----------
        projected : tensor (batch, gates * hidden)
        previous : tensor (batch, hidden)
            What the recurrent weights multiply: `states[0]`, after the hooks that act on it.
        states : list of tensor (batch, hidden)
            The states as they are, hidden state first.

        Returns
        -------
        (hidden, rest)
            The new hidden state h_t and the list of the states behind it.
        """
        raise TypeError(f"{type(self).__name__} does not define transition")

    def hybrid_forward(
        self,
        F: Any,
        inputs: Tensor,
        states: States,
        i2h_weight: Tensor,
        i2h_bias: Tensor,
        h2h_weight: Tensor,
        h2h_bias: Tensor,
    ) -> Tuple[Tensor, States]:
        projected = self.project(F, inputs, i2h_weight, i2h_bias)
        return self._step(F, projected, h2h_weight, h2h_bias, states[0], states)

    def _step(
        self, F: Any, projected: Tensor, h2h_weight: Tensor, h2h_bias: Tensor, previous: Tensor, states: States
    ) -> Tuple[Tensor, States]:
        hidden, rest = self.transition(F, projected, previous, states, h2h_weight, h2h_bias)
        return hidden, [hidden] + rest

    def steps(self, F: Any, length: int, inputs: Tensor) -> Tuple[Callable[[], Tensor], List[Any]]:
        """Project a whole sequence in one product.

        Parameters
        ----------
        F : module
        length : int
        inputs : tensor (T, batch, input size)

        Returns
        -------
        (function, list of function)
            One that makes a tensor of the shape of all hidden states, (T * batch, hidden); and each step, a function
            (what the recurrent weights multiply, states) -> (output, next states).
        """
        weights = self._weights(inputs)
        projected = self.project(F, F.reshape(inputs, shape=(-3, 0)), weights["i2h_weight"], weights["i2h_bias"])
        recurrent = weights["h2h_weight"], weights["h2h_bias"]
        steps = [partial(self._step, F, one, *recurrent) for one in _split_steps(F, projected, length)]
        return partial(F.slice_axis, projected, axis=1, begin=0, end=self._hidden_size), steps

    def _weights(self, inputs: Tensor) -> Dict[str, Tensor]:
        try:
            return block_parameters(self, inputs)
        except DeferredInitializationError:  # the first inputs say of which size they are
            self.i2h_weight.shape = (self.gates * self._hidden_size, inputs.shape[-1])
            self.i2h_weight._finish_deferred_init()
            return block_parameters(self, inputs)

    def sequence(self, F: Any, length: int, inputs: Tensor, states: States) -> Tuple[Outputs, States]:
        return run(self, F, length, inputs, states, Hooks())

    def _get_activation(self, F: Any, inputs: Tensor, activation: Any, **options: Any) -> Tensor:
        if activation in ACTIVATIONS:
            return F.Activation(inputs, act_type=activation)  # in vector instructions, which F.tanh is not
        return super()._get_activation(F, inputs, activation, **options)


def run(
    cell: HybridRecurrentCell, F: Any, length: int, inputs: Tensor, states: States, hooks: Hooks
) -> Tuple[Outputs, States]:
    """Run all steps of any cell whose first state is its output, with what `hooks` add.

    A cell that has `steps` does its input projections in one product, and what acts on its hidden states draws once for
    the whole sequence. Any other cell is called step by step. Parameters and result are those of
    `SequenceCell.sequence`.
    """
    for hook in hooks.inputs:
        inputs = hook(inputs)
    if hasattr(cell, "steps"):
        like, steps = cell.steps(F, length, inputs)
        drawn = [_split_steps(F, hook.deviation(F, like()), length) for hook in hooks.hidden]
    else:
        each = _split_steps(F, F.reshape(inputs, shape=(-3, -2)), length)
        steps = [lambda previous, states, one=one: cell(one, [previous] + states[1:]) for one in each]
        drawn = []
    outputs = []
    for number, step in enumerate(steps):
        previous = states[0]
        for hook in hooks.recurrent:
            previous = hook(previous)
        output, states = step(previous, states)
        for layer, hook in enumerate(hooks.hidden):
            deviation = drawn[layer][number] if drawn else hook.deviation(F, states[0])
            hidden = hook.combine(F, states[0], deviation)
            # Of a hybridized or a residual cell the output is another tensor: it moves by the same draw.
            output = hidden if output is states[0] else hook.combine(F, output, deviation)
            states = [hidden] + states[1:]
        outputs.append(output)
    if not hooks.outputs:
        return outputs, states
    sequence = F.stack(*outputs, axis=0)
    for hook in hooks.outputs:
        sequence = hook(sequence)
    return sequence, states


def _split_steps(F: Any, sequence: Tensor, length: int) -> List[Tensor]:
    """(length * batch, units), step after step -> a list of (batch, units)."""
    # With one output MXNet returns the tensor itself, and indexing that would take its first row.
    return [sequence] if length == 1 else list(F.split(sequence, num_outputs=length, axis=0))


def _split_gates(F: Any, gates: Tensor, count: int) -> List[Tensor]:
    """(batch, count * hidden) -> `count` times (batch, hidden)."""
    # As an axis of its own: along one that is not the last, MXNet copies whole rows and not number by number.
    return F.split(F.reshape(gates, shape=(0, count, -1)), num_outputs=count, axis=1, squeeze_axis=True)


class ElmanCell(ProjectedCell, rnn.RNNCell):
    r"""Elman's recurrent cell, the plain RNN of the paper (section 2.1).

    .. math:: h_t = f(U x_t + b + W h_{t-1} + b')

    Parameters
    ----------
    hidden_size : int
    activation : {'tanh', 'sigmoid', 'relu'}, default 'tanh'
        f.
    **options
        Of `mxnet.gluon.rnn.RNNCell`.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: [h_{t-1}], (batch, hidden).

    Outputs:
        - **output**: h_t, (batch, hidden).
        - **next states**: [h_t].
    """

    def transition(
        self, F: Any, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=self._hidden_size)
        return self._get_activation(F, projected + recurrent, self._activation), []


class LSTMCell(ProjectedCell, rnn.LSTMCell):
    r"""Long short-term memory with a forget gate (Gers et al., 2000); gates in Gluon's order i, f, g, o.

    .. math::
        i_t, f_t, o_t &= \sigma(U_{i,f,o}\, x_t + b_{i,f,o} + W_{i,f,o}\, h_{t-1} + b'_{i,f,o}) \\
        g_t &= \tanh(U_g x_t + b_g + W_g h_{t-1} + b'_g) \\
        c_t &= f_t c_{t-1} + i_t g_t, \quad h_t = o_t \tanh(c_t)

    Noise and recurrent masks act on h, not on c.

    Parameters
    ----------
    hidden_size : int
    **options
        Of `mxnet.gluon.rnn.LSTMCell`.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: [h_{t-1}, c_{t-1}], each (batch, hidden).

    Outputs:
        - **output**: h_t, (batch, hidden).
        - **next states**: [h_t, c_t].
    """

    gates = 4

    def transition(
        self, F: Any, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=4 * self._hidden_size)
        update, forget, candidate, output = _split_gates(F, projected + recurrent, 4)
        update, forget, output = (
            self._get_activation(F, gate, self._recurrent_activation) for gate in (update, forget, output)
        )
        memory = forget * states[1] + update * self._get_activation(F, candidate, self._activation)
        return output * self._get_activation(F, memory, self._activation), [memory]


class GRUCell(ProjectedCell, rnn.GRUCell):
    r"""Gated recurrent unit (Cho et al., 2014) in cuDNN's and Gluon's variant: the reset gate acts after the product.

    .. math::
        r_t, u_t &= \sigma(U_{r,u}\, x_t + b_{r,u} + W_{r,u}\, h_{t-1} + b'_{r,u}) \\
        n_t &= \tanh(U_n x_t + b_n + r_t (W_n h_{t-1} + b'_n)) \\
        h_t &= (1 - u_t)\, n_t + u_t h_{t-1}

    Gates are in Gluon's order r, u (there z), n. A recurrent mask acts on what W multiplies, not on the h_{t-1} that
    u_t carries over.

    Parameters
    ----------
    hidden_size : int
    **options
        Of `mxnet.gluon.rnn.GRUCell`.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: [h_{t-1}], (batch, hidden).

    Outputs:
        - **output**: h_t, (batch, hidden).
        - **next states**: [h_t].
    """

    gates = 3

    def transition(
        self, F: Any, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=3 * self._hidden_size)
        input_reset, input_update, input_candidate = _split_gates(F, projected, 3)
        hidden_reset, hidden_update, hidden_candidate = _split_gates(F, recurrent, 3)
        reset = F.Activation(input_reset + hidden_reset, act_type="sigmoid")
        update = F.Activation(input_update + hidden_update, act_type="sigmoid")
        candidate = F.Activation(input_candidate + reset * hidden_candidate, act_type="tanh")
        return (1 - update) * candidate + update * states[0], []


CELLS: Dict[str, Type[ProjectedCell]] = {"rnn": ElmanCell, "lstm": LSTMCell, "gru": GRUCell}


def is_stochastic(cell: HybridRecurrentCell) -> bool:
    """Return whether a cell is random in train mode: what it says itself, else whether a cell inside it is."""
    answer = getattr(cell, "stochastic", None)
    return any(map(is_stochastic, cell._children.values())) if answer is None else answer


def begin_sequence(cell: HybridRecurrentCell, states: Sequence[Tensor]) -> States:
    """Return the states that a cell begins a new sequence with: what it says itself, else what the cells inside it do.

    A cell of Gluon's has its children's states, one child after the other; without children it carries all of them on.
    """
    if hasattr(cell, "begin_sequence"):
        return cell.begin_sequence(list(states))
    begun: States = []
    for child in cell._children.values():
        if isinstance(child, rnn.RecurrentCell):
            begun += begin_sequence(child, states[len(begun) : len(begun) + len(child.state_info())])
    return begun or list(states)


class CellStack(rnn.HybridSequentialRNNCell):
    """Cells on top of one another: Gluon's sequential cell, which says what is random in it and renews that."""

    def __iter__(self) -> Iterator[HybridRecurrentCell]:
        return iter(self._children.values())

    @property
    def stochastic(self) -> bool:
        """Whether any of the cells is random in train mode."""
        return any(map(is_stochastic, self))

    def begin_sequence(self, states: States) -> States:
        """Return the same carried states, with what is drawn once a sequence drawn anew."""
        begun: States = []
        for cell in self:
            begun += begin_sequence(cell, states[len(begun) : len(begun) + len(cell.state_info())])
        return begun

    def unroll(
        self,
        length: int,
        inputs: Outputs,
        begin_state: Optional[States] = None,
        layout: str = "NTC",
        merge_outputs: Optional[bool] = None,
        valid_length: Optional[Tensor] = None,
    ) -> Tuple[Outputs, States]:
        """Unroll layer by layer, as Gluon's sequential cell, with one tensor between two layers."""
        self.reset()
        after: States = []
        for layer, cell in enumerate(self):
            own = None if begin_state is None else begin_state[len(after) : len(after) + len(cell.state_info())]
            merged = merge_outputs if layer == len(self) - 1 else True
            inputs, states = cell.unroll(length, inputs, own, layout, merged, valid_length)
            after += states
        return inputs, after


def make_cells(
    cell: str,
    hidden: int,
    layers: int,
    input_size: int,
    activation: Optional[str] = None,
    regularise: Optional[Callable[[HybridRecurrentCell, int], HybridRecurrentCell]] = None,
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
    regularise : function (cell, layer) -> cell, optional
        What to stack instead of the plain cell of a layer, counted from 0 at the bottom.
    recurrent_init : {'orthogonal', 'identity', 'uniform'}
        Of each hidden-to-hidden matrix (of each gate's, in LSTM and GRU).
    init_scale : float, default 0.1
        Half-width of the uniform distribution that input weights start from.
    forget_bias : float, default 0
        Where the LSTM's forget-gate bias starts.
    prefix : str, default ''
        Of the names of all parameters.

    Returns
    -------
    CellStack
        With parameters not yet initialised.

    Raises
    ------
    ValueError
        For an unknown `recurrent_init`.
    """
    stack = CellStack(prefix=prefix)
    for layer in range(layers):
        options: Dict[str, Any] = {
            "i2h_weight_initializer": mx.init.Uniform(init_scale),
            "h2h_weight_initializer": RecurrentInit(recurrent_init, init_scale),
            "input_size": input_size if layer == 0 else hidden,
            "prefix": f"{prefix}l{layer}_",
        }
        if cell == "rnn":
            options["activation"] = activation
        if cell == "lstm":
            options["i2h_bias_initializer"] = mx.init.LSTMBias(forget_bias)
        plain = CELLS[cell](hidden, **options)
        stack.add(regularise(plain, layer) if regularise else plain)
    return stack
