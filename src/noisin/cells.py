"""Recurrent cells and their stack: drop-ins for Gluon's.

Each cell keeps Gluon's contract (`state_info`, `begin_state`, `cell(inputs, states)`, `unroll`, `reset`) and the
parameter names of the Gluon cell that it extends. To add a cell, extend the Gluon one with `ProjectedCell`, write its
`transition`, and name it in `CELLS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple, Type, Union

import mxnet as mx
from mxnet.gluon import rnn
from mxnet.gluon.parameter import DeferredInitializationError
from mxnet.gluon.rnn.rnn_cell import HybridRecurrentCell, _format_sequence, _get_begin_state

from noisin.graphs import Tensor, block_parameters
from noisin.initializers import RecurrentInit
from noisin.native.lstm import has_operator, lstm_step
from noisin.system.errors import plural

ACTIVATIONS = ("tanh", "sigmoid", "relu")

States = List[Tensor]
Outputs = Union[Tensor, List[Tensor]]
# (what the recurrent weights multiply, states) -> (output, next states)
Step = Callable[[Tensor, States], Tuple[Tensor, States]]


class HiddenHook(Protocol):
    """A perturbation of the hidden state, drawn apart from it; `Noise` is one."""

    def deviation(self, F: ModuleType, like: Tensor) -> Tensor:
        """Draw a deviation of the shape of `like`."""

    def combine(self, F: ModuleType, hidden: Tensor, deviation: Tensor) -> Tensor:
        """Apply a deviation to a hidden state of the same shape."""


@dataclass
class Hooks:
    """What acts on a cell while it is unrolled, in the order of each list; by default nothing.

    Attributes
    ----------
    inputs : list of function
        Act on the whole sequence (T, batch, input size), before the cell.
    recurrent : list of function
        Act at each step on the hidden state (batch, hidden) that the recurrent weights multiply.
    hidden : list of HiddenHook
        Act at each step on the new hidden state (batch, hidden). One draw perturbs both the output and the state that
        the next step sees.
    outputs : list of function
        Act on the whole sequence of outputs (T, batch, hidden), after the cell; not on the states.
    """

    inputs: List[Callable[[Tensor], Tensor]] = field(default_factory=list)
    recurrent: List[Callable[[Tensor], Tensor]] = field(default_factory=list)
    hidden: List[HiddenHook] = field(default_factory=list)
    outputs: List[Callable[[Tensor], Tensor]] = field(default_factory=list)


class SequenceCell(HybridRecurrentCell):
    """A cell that unrolls a sequence as a whole; a subclass defines `sequence`."""

    def sequence(self, F: ModuleType, length: int, inputs: Tensor, states: States) -> Tuple[Outputs, States]:
        """Run all steps.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        length : int
            T.
        inputs : tensor (T, batch, input size)
        states : list of tensor
            As `state_info` describes them.

        Returns
        -------
        (outputs, states)
            A list of T outputs (batch, hidden) or one tensor (T, batch, hidden), and the states after the last step.

        Raises
        ------
        TypeError
            If the subclass does not define `sequence`.
        """
        raise TypeError(f"{type(self).__name__} does not define sequence")

    def first_states(self, F: ModuleType, inputs: Tensor) -> States:
        """Return the initial states for inputs (T, batch, input size), where the caller gives none: zeros."""
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
        """Unroll over `length` steps; equal to stepping, up to rounding.

        Parameters
        ----------
        length : int
            T.
        inputs : tensor (batch, T, input size) or list of T tensors (batch, input size)
        begin_state : list of tensor, optional
            By default zeros (and new masks, for a cell that draws masks).
        layout : {'NTC', 'TNC'}, default 'NTC'
        merge_outputs : bool, optional
            Return one tensor of outputs in `layout`. By default, return a list.
        valid_length : tensor (batch,), optional
            As in Gluon, which then steps through the sequence.

        Returns
        -------
        (outputs, states)
            T outputs (batch, hidden), and the states after the last step.

        Raises
        ------
        ValueError
            If a tensor of inputs has another number of steps; `MXNetError` inside a graph.
        AssertionError
            If a list of inputs has another length, as in Gluon.
        """
        self.reset()
        sequence, _, F, _ = _format_sequence(length, inputs, "TNC", True, in_layout=layout)
        if F is not mx.nd:  # fails for another number of steps when the graph runs
            sequence = F.squeeze(F.reshape(sequence, shape=(-4, length, -1, -2)), axis=1)
        elif sequence.shape[0] != length:  # broadcasting would hide it
            raise ValueError(f"inputs in layout {layout} have {plural(sequence.shape[0], 'step')}: {length} expected")
        states = self.first_states(F, sequence) if begin_state is None else begin_state
        if valid_length is not None:
            return super().unroll(length, inputs, states, layout, merge_outputs, valid_length)
        outputs, states = self.sequence(F, length, sequence, states)
        if not isinstance(outputs, list):
            outputs = _format_sequence(length, outputs, layout, bool(merge_outputs), in_layout="TNC")[0]
        elif merge_outputs:
            outputs = F.stack(*outputs, axis=layout.find("T"))
        return outputs, states


class ProjectedCell(SequenceCell):
    r"""A cell whose input projection is separate from its recurrence, so that `unroll` projects all steps at once.

    .. math:: h_t = f(U x_t + b,\; h_{t-1})

    A subclass also extends a Gluon cell, which gives it its parameters. It defines `transition` and `gates`, the number
    of (hidden, ...) blocks in its weights.
    """

    gates = 1

    def project(self, F: ModuleType, inputs: Tensor, i2h_weight: Tensor, i2h_bias: Tensor) -> Tensor:
        """Return U x + b for each of N inputs: (N, input size) -> (N, gates * hidden)."""
        return F.FullyConnected(inputs, i2h_weight, i2h_bias, num_hidden=self.gates * self._hidden_size)

    def transition(
        self, F: ModuleType, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        """Do one step from the projected input.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        projected : tensor (batch, gates * hidden)
            U x_t + b.
        previous : tensor (batch, hidden)
            What the recurrent weights multiply: `states[0]`, after the hooks that act on it.
        states : list of tensor (batch, hidden)
            The previous states without hooks; the hidden state h_{t-1} is first.
        h2h_weight : tensor (gates * hidden, hidden)
        h2h_bias : tensor (gates * hidden,)

        Returns
        -------
        (hidden, rest)
            The new hidden state h_t, and the list of the other new states.

        Raises
        ------
        TypeError
            If the subclass does not define `transition`.
        """
        raise TypeError(f"{type(self).__name__} does not define transition")

    def hybrid_forward(
        self,
        F: ModuleType,
        inputs: Tensor,
        states: States,
        i2h_weight: Tensor,
        i2h_bias: Tensor,
        h2h_weight: Tensor,
        h2h_bias: Tensor,
    ) -> Tuple[Tensor, States]:
        """Do one step from x_t (batch, input size) and states (batch, hidden); return (h_t, [h_t, other states])."""
        projected = self.project(F, inputs, i2h_weight, i2h_bias)
        return self._step(F, projected, h2h_weight, h2h_bias, states[0], states)

    def _step(
        self, F: ModuleType, projected: Tensor, h2h_weight: Tensor, h2h_bias: Tensor, previous: Tensor, states: States
    ) -> Tuple[Tensor, States]:
        hidden, rest = self.transition(F, projected, previous, states, h2h_weight, h2h_bias)
        return hidden, [hidden] + rest

    def steps(self, F: ModuleType, length: int, inputs: Tensor) -> Tuple[Callable[[], Tensor], List[Step]]:
        """Project a whole sequence in one product.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        length : int
            T.
        inputs : tensor (T, batch, input size)

        Returns
        -------
        (function, list of Step)
            A function that makes a tensor of the shape of all hidden states, (T * batch, hidden); and the T steps.
        """
        weights = self._weights(inputs)
        projected = self.project(F, F.reshape(inputs, shape=(-3, 0)), weights["i2h_weight"], weights["i2h_bias"])
        recurrent = weights["h2h_weight"], weights["h2h_bias"]
        steps: List[Step] = [partial(self._step, F, one, *recurrent) for one in _split_steps(F, projected, length)]
        return partial(F.slice_axis, projected, axis=1, begin=0, end=self._hidden_size), steps

    def _weights(self, inputs: Tensor) -> Dict[str, Tensor]:
        try:
            return block_parameters(self, inputs)
        except DeferredInitializationError:  # the first inputs give the input size
            self.i2h_weight.shape = (self.gates * self._hidden_size, inputs.shape[-1])
            self.i2h_weight._finish_deferred_init()
            return block_parameters(self, inputs)

    def sequence(self, F: ModuleType, length: int, inputs: Tensor, states: States) -> Tuple[Outputs, States]:
        return run(self, F, length, inputs, states, Hooks())

    def _get_activation(
        self, F: ModuleType, inputs: Tensor, activation: Union[str, mx.gluon.Block], **options: Any
    ) -> Tensor:
        if activation in ACTIVATIONS:
            return F.Activation(inputs, act_type=activation)  # vectorised, unlike F.tanh
        return super()._get_activation(F, inputs, activation, **options)


def run(
    cell: HybridRecurrentCell, F: ModuleType, length: int, inputs: Tensor, states: States, hooks: Hooks
) -> Tuple[Outputs, States]:
    """Run all steps of a cell under `hooks`.

    A cell that has `steps` does its input projections in one product, and each hidden hook draws once for the whole
    sequence. Any other cell is called step by step.

    Parameters
    ----------
    cell : HybridRecurrentCell
        Any cell whose first state is its hidden state.
    F, length, inputs, states
        As in `SequenceCell.sequence`.
    hooks : Hooks

    Returns
    -------
    (outputs, states)
        As from `SequenceCell.sequence`.
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
        for index, hidden_hook in enumerate(hooks.hidden):
            deviation = drawn[index][number] if drawn else hidden_hook.deviation(F, states[0])
            hidden = hidden_hook.combine(F, states[0], deviation)
            # A hybridized or residual cell's output is another tensor: the same draw perturbs it.
            output = hidden if output is states[0] else hidden_hook.combine(F, output, deviation)
            states = [hidden] + states[1:]
        outputs.append(output)
    if not hooks.outputs:
        return outputs, states
    sequence = F.stack(*outputs, axis=0)
    for hook in hooks.outputs:
        sequence = hook(sequence)
    return sequence, states


def _split_steps(F: ModuleType, sequence: Tensor, length: int) -> List[Tensor]:
    """Split (length * batch, units), step after step, into a list of (batch, units)."""
    # With one output MXNet returns the tensor itself, and list() would split it into rows.
    return [sequence] if length == 1 else list(F.split(sequence, num_outputs=length, axis=0))


def _split_gates(F: ModuleType, gates: Tensor, count: int) -> List[Tensor]:
    """Split (batch, count * hidden) into `count` tensors (batch, hidden)."""
    # The gates get an axis of their own: along any axis but the last, MXNet copies whole rows, not single numbers.
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
        As in `mxnet.gluon.rnn.RNNCell`.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: [h_{t-1}], (batch, hidden).

    Outputs:
        - **output**: h_t, (batch, hidden).
        - **next states**: [h_t].
    """

    def transition(
        self, F: ModuleType, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=self._hidden_size)
        return self._get_activation(F, projected + recurrent, self._activation), []


class LSTMCell(ProjectedCell, rnn.LSTMCell):
    r"""Long short-term memory with a forget gate (Gers et al., 2000).

    .. math::
        i_t, f_t, o_t &= \sigma(U_{i,f,o}\, x_t + b_{i,f,o} + W_{i,f,o}\, h_{t-1} + b'_{i,f,o}) \\
        g_t &= \tanh(U_g x_t + b_g + W_g h_{t-1} + b'_g) \\
        c_t &= f_t c_{t-1} + i_t g_t, \quad h_t = o_t \tanh(c_t)

    The gates are in Gluon's order i, f, g, o. Noise and recurrent masks act on h, not on c.

    Parameters
    ----------
    hidden_size : int
    **options
        As in `mxnet.gluon.rnn.LSTMCell`.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: [h_{t-1}, c_{t-1}], each (batch, hidden).

    Outputs:
        - **output**: h_t, (batch, hidden).
        - **next states**: [h_t, c_t].
    """

    gates = 4

    def transition(
        self, F: ModuleType, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
    ) -> Tuple[Tensor, States]:
        recurrent = F.FullyConnected(previous, h2h_weight, h2h_bias, num_hidden=4 * self._hidden_size)
        usual = (self._recurrent_activation, self._activation) == ("sigmoid", "tanh")
        if usual and has_operator(F, self.h2h_weight):
            hidden, memory = lstm_step(projected, recurrent, states[1])
            return hidden, [memory]
        update, forget, candidate, output = _split_gates(F, projected + recurrent, 4)
        update, forget, output = (
            self._get_activation(F, gate, self._recurrent_activation) for gate in (update, forget, output)
        )
        memory = forget * states[1] + update * self._get_activation(F, candidate, self._activation)
        return output * self._get_activation(F, memory, self._activation), [memory]


class GRUCell(ProjectedCell, rnn.GRUCell):
    r"""Gated recurrent unit (Cho et al., 2014); as in cuDNN and Gluon, the reset gate acts after the product.

    .. math::
        r_t, u_t &= \sigma(U_{r,u}\, x_t + b_{r,u} + W_{r,u}\, h_{t-1} + b'_{r,u}) \\
        n_t &= \tanh(U_n x_t + b_n + r_t (W_n h_{t-1} + b'_n)) \\
        h_t &= (1 - u_t)\, n_t + u_t h_{t-1}

    The gates are in Gluon's order r, u, n; Gluon calls u z. A recurrent mask acts on what W multiplies, not on the
    h_{t-1} that u_t carries over.

    Parameters
    ----------
    hidden_size : int
    **options
        As in `mxnet.gluon.rnn.GRUCell`.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: [h_{t-1}], (batch, hidden).

    Outputs:
        - **output**: h_t, (batch, hidden).
        - **next states**: [h_t].
    """

    gates = 3

    def transition(
        self, F: ModuleType, projected: Tensor, previous: Tensor, states: States, h2h_weight: Tensor, h2h_bias: Tensor
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
    """Return whether a cell is random in train mode: its own `stochastic`, else whether any child is random."""
    answer = getattr(cell, "stochastic", None)
    return any(map(is_stochastic, cell._children.values())) if answer is None else answer


def begin_sequence(cell: HybridRecurrentCell, states: Sequence[Tensor]) -> States:
    """Return the states with which a cell begins a new sequence: with new draws of e.g. dropout masks.

    A cell's own `begin_sequence` decides. Otherwise each child decides about its part of the states, and a cell without
    children carries all of them on.

    Parameters
    ----------
    cell : HybridRecurrentCell
    states : sequence of tensor
        The cell's states, one child after the other.

    Returns
    -------
    list of tensor
        Like `states`.
    """
    if hasattr(cell, "begin_sequence"):
        return cell.begin_sequence(list(states))
    begun: States = []
    for child in cell._children.values():
        if isinstance(child, rnn.RecurrentCell):
            begun += begin_sequence(child, states[len(begun) : len(begun) + len(child.state_info())])
    return begun or list(states)


class CellStack(rnn.HybridSequentialRNNCell):
    """Cells on top of one another: Gluon's sequential cell, unrolled layer by layer."""

    def __iter__(self) -> Iterator[HybridRecurrentCell]:
        return iter(self._children.values())

    def unroll(
        self,
        length: int,
        inputs: Outputs,
        begin_state: Optional[States] = None,
        layout: str = "NTC",
        merge_outputs: Optional[bool] = None,
        valid_length: Optional[Tensor] = None,
    ) -> Tuple[Outputs, States]:
        """Unroll layer by layer, with one tensor between two layers; arguments and result as in `SequenceCell`."""
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
    """Stack `layers` cells, bottom first.

    Parameters
    ----------
    cell : {'rnn', 'lstm', 'gru'}
    hidden : int
        Units in each layer.
    layers : int
    input_size : int
        Units that enter the bottom layer.
    activation : {'tanh', 'sigmoid', 'relu'}
        Of the Elman RNN; unused otherwise.
    regularise : function (cell, layer) -> cell, optional
        Wraps the cell of a layer; layer 0 is the bottom.
    recurrent_init : {'orthogonal', 'identity', 'uniform'}, default 'orthogonal'
        Initial value of each hidden-to-hidden matrix (one per gate).
    init_scale : float, default 0.1
        Half-width of the uniform distribution that initialises the input weights.
    forget_bias : float, default 0
        Initial bias of the LSTM's forget gate.
    prefix : str, default ''
        Prefix of all parameter names.

    Returns
    -------
    CellStack
        Its parameters are not yet initialised.

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
