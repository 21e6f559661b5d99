"""What acts on a recurrent cell: noise, variational dropout and standard dropout, each around any cell and any other.

Whatever their order around a cell, all act on one step of it,

    h_t = f(m_x x_t, m_h z_{t-1}),    z_t ~ noise(h_t),    y_t = m_y z_t,

where f is the cell, y_t leaves it upwards, and z_t is what the next step sees: noise acts on the hidden state itself,
a recurrent mask on what the recurrent weights multiply, and a mask of outputs on what goes up, never on what recurs.
Of several masks or noises at one place the inner cell's comes first, and at the inputs the outer cell's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import mxnet as mx
from mxnet.gluon import rnn
from mxnet.gluon.rnn.rnn_cell import HybridRecurrentCell, ModifierCell

from noisin.cells import Hooks, Outputs, SequenceCell, States, begin_sequence, run
from noisin.graphs import Tensor, training_gate
from noisin.noise import Noise

MASKS = ("inputs", "states", "outputs")  # in the order in which VariationalDropoutCell keeps them in its state


class RegularisedCell(SequenceCell, ModifierCell):
    """A cell around another: a subclass says in `hook` what acts where.

    Its weights keep the names that they have in `save_parameters` without it, and either loads the other's file.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        A cell of one layer, Gluon's own and its modifiers too, whose first state is its output.

    Raises
    ------
    TypeError
        For a cell without a state, or of several layers: wrap each of them.
    """

    stochastic = True

    def __init__(self, base_cell: HybridRecurrentCell) -> None:
        several = isinstance(base_cell, (rnn.SequentialRNNCell, rnn.HybridSequentialRNNCell, rnn.BidirectionalCell))
        if several or not base_cell.state_info():
            raise TypeError(f"{type(self).__name__} acts on one layer with a state: wrap each cell of {base_cell.name}")
        super().__init__(base_cell)

    def hook(self, F: Any, hooks: Hooks, states: States) -> None:
        """Add to `hooks` what acts, given the states that this cell adds to its base cell's."""
        raise TypeError(f"{type(self).__name__} does not define hook")

    def _chain(self) -> Tuple[HybridRecurrentCell, List[RegularisedCell]]:
        """Return the innermost cell and the regularisers around it, from the inside out."""
        base = self.base_cell
        core, inner = base._chain() if isinstance(base, RegularisedCell) else (base, [])
        return core, inner + [self]

    def sequence(self, F: Any, length: int, inputs: Tensor, states: States) -> Tuple[Outputs, States]:
        core, around = self._chain()
        hooks, end = Hooks(), len(core.state_info())
        # In a static graph MXNet fails over an output that is an input and nothing else (as apache/mxnet#20293).
        own, rest = states[:end], [state * 1 for state in states[end:]]
        for cell in around:
            begin, end = end, len(cell.state_info())
            cell.hook(F, hooks, states[begin:end])
        hooks.inputs.reverse()
        outputs, own = run(core, F, length, inputs, own, hooks)
        return outputs, own + rest

    def hybrid_forward(self, F: Any, inputs: Tensor, states: States) -> Tuple[Tensor, States]:
        # One step is a sequence of one.
        outputs, states = self.sequence(F, 1, F.expand_dims(inputs, axis=0), states)
        return outputs[0] if isinstance(outputs, list) else F.reshape(outputs, shape=(-3, -2)), states

    def first_states(self, F: Any, inputs: Tensor) -> States:
        with _unmodified(self.base_cell):
            if isinstance(self.base_cell, SequenceCell):
                return self.base_cell.first_states(F, inputs)
            return SequenceCell.first_states(self.base_cell, F, inputs)

    def begin_state(self, batch_size: int = 0, func: Callable = mx.nd.zeros, **kwargs: Any) -> States:
        """Return zero states; `func` defaults to `nd.zeros` as it does in a plain cell."""
        return super().begin_state(func=func, batch_size=batch_size, **kwargs)

    def begin_sequence(self, states: States) -> States:
        """Return the states with which a new sequence begins: the base cell's."""
        return begin_sequence(self.base_cell, states)

    def _collect_params_with_prefix(self, prefix: str = "") -> Dict[str, Any]:
        named = self.base_cell._collect_params_with_prefix(prefix)
        for name, child in self._children.items():
            if child is not self.base_cell:
                named.update(child._collect_params_with_prefix(f"{prefix}.{name}" if prefix else name))
        return named

    def load_parameters(
        self, filename: str, ctx: Any = None, allow_missing: bool = False, ignore_extra: bool = False, **options: Any
    ) -> None:
        """Load a file of `save_parameters`, this cell's or the base cell's."""
        if any("." in name for name in mx.nd.load(filename)):
            return super().load_parameters(filename, ctx, allow_missing, ignore_extra, **options)
        # Names without a dot are those of one cell: Gluon would look for them under the prefix of this one.
        missing = set(self._collect_params_with_prefix()) - set(self.base_cell._collect_params_with_prefix())
        if missing and not allow_missing:
            raise ValueError(f"{filename} has no {', '.join(sorted(missing))}: allow_missing=True keeps what there is")
        return self.base_cell.load_parameters(filename, ctx, allow_missing, ignore_extra, **options)


class NoisyCell(RegularisedCell):
    r"""Inject unbiased noise into the hidden state of a cell: NOISIN (paper, section 3).

    .. math:: h_t = f(x_t, z_{t-1}), \quad z_t \sim noise(h_t, \gamma), \quad E[z_t | z_{t-1}] = h_t

    One draw a unit and step: the output and the state that the next step sees are the same z_t. If a cell's output is
    not its first state (`ResidualCell`, `ZoneoutCell`), the same draw perturbs both. The noise acts in Gluon's train
    mode and is off in predict mode.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, Gluon's own too.
    noise : Noise

    Inputs:
        - **inputs**: (batch, input size).
        - **states**: the base cell's list; the hidden state z_{t-1} first, (batch, hidden).

    Outputs:
        - **output**: z_t, (batch, hidden).
        - **next states**: z_t, then the base cell's other states, untouched.

    Raises
    ------
    TypeError
        For a cell without a state, or of several layers.

    Examples
    --------
    >>> from mxnet import autograd, gluon, nd
    >>> from noisin.noise import Noise
    >>> cell = NoisyCell(gluon.rnn.LSTMCell(8), Noise("gaussian", gamma=0.2))
    >>> cell.initialize()
    >>> with autograd.train_mode():
    ...     outputs, (z, c) = cell.unroll(5, nd.ones((5, 3, 4)), layout="TNC", merge_outputs=True)
    >>> outputs.shape, z.shape, bool((outputs[-1] == z).asnumpy().all())
    ((5, 3, 8), (3, 8), True)
    """

    def __init__(self, base_cell: HybridRecurrentCell, noise: Noise) -> None:
        super().__init__(base_cell)
        self.noise = noise

    def _alias(self) -> str:
        return "noisy"

    def hook(self, F: Any, hooks: Hooks, states: States) -> None:
        hooks.hidden.append(self.noise)


class VariationalDropoutCell(RegularisedCell):
    r"""Dropout with one mask a sequence on inputs, recurrent state and outputs (Gal and Ghahramani, 2016).

    .. math:: h_t = f(m_x x_t,\; m_h h_{t-1}), \quad y_t = m_y h_t, \quad m \sim Bernoulli(1 - p) / (1 - p)

    The masks are the last three states: `begin_state` draws them, every step and `unroll` use and return them
    unchanged, and `begin_sequence` draws new ones for the next sequence. Nothing random stays on the cell. They act in
    Gluon's train mode and are ignored in predict mode. m_h acts on what the recurrent weights multiply; of a cell that
    is not one of this package, on all that reads h_{t-1}.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, Gluon's own too.
    inputs, states, outputs : float, default 0
        Dropout rates p.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: the base cell's list, then m_x (batch, input size), m_h and m_y, each (batch, hidden).

    Outputs:
        - **output**: y_t, (batch, hidden).
        - **next states**: like `states`, the masks unchanged.

    Raises
    ------
    TypeError
        For a cell without a state, or of several layers.
    ValueError
        For a rate outside [0, 1). By `begin_state`, where the size of the inputs or of the batch is not known: give the
        cell its input size, or let `unroll` draw the masks that its inputs need.

    Examples
    --------
    >>> from mxnet import autograd, gluon, nd
    >>> cell = VariationalDropoutCell(gluon.rnn.GRUCell(8, input_size=4), inputs=0.2, states=0.2, outputs=0.5)
    >>> cell.initialize()
    >>> states = cell.begin_state(batch_size=3)
    >>> [state.shape for state in states]  # h, and the masks of inputs, recurrent state and outputs
    [(3, 8), (3, 4), (3, 8), (3, 8)]
    >>> with autograd.train_mode():
    ...     outputs, states = cell.unroll(5, nd.ones((5, 3, 4)), states, layout="TNC", merge_outputs=True)
    >>> states = cell.begin_sequence(states)  # h goes on under new masks
    """

    def __init__(
        self, base_cell: HybridRecurrentCell, inputs: float = 0.0, states: float = 0.0, outputs: float = 0.0
    ) -> None:
        super().__init__(base_cell)
        self._rates = (inputs, states, outputs)
        for name, rate in zip(MASKS, self._rates):
            check_rate(name, rate)

    def _alias(self) -> str:
        return "vardrop"

    def state_info(self, batch_size: int = 0) -> List[Dict[str, Any]]:
        carried = self.base_cell.state_info(batch_size)
        core = self._chain()[0]
        while hasattr(core, "base_cell"):
            core = core.base_cell
        weight = getattr(core, "i2h_weight", None)
        inputs = (batch_size, weight.shape[1] if weight is not None else 0)
        masks = (inputs, carried[0]["shape"], carried[0]["shape"])
        return carried + [{"shape": shape, "__layout__": "NC"} for shape in masks]

    def begin_state(self, batch_size: int = 0, func: Callable = mx.nd.zeros, **kwargs: Any) -> States:
        """Return zero states and freshly drawn masks."""
        shapes = [info["shape"] for info in self.state_info(batch_size)[-len(MASKS) :]]
        if not all(map(all, shapes)):
            raise ValueError(
                f"{self.name} cannot draw masks of shapes {', '.join(map(str, shapes))}: give begin_state a batch size "
                "and the cell an input size; inside a graph, give unroll states or no states"
            )
        options = {name: kwargs[name] for name in ("ctx", "dtype") if name in kwargs}
        ones = [mx.nd.ones(shape, **options) for shape in shapes]
        return super().begin_state(batch_size, func, **kwargs) + self._draw(mx.nd, ones)

    def begin_sequence(self, states: States) -> States:
        """Return the same carried states with new masks: call it where a new sequence (a BPTT segment) begins."""
        carried, masks = states[: -len(MASKS)], states[-len(MASKS) :]
        ones = [mx.nd.ones(mask.shape, mask.context, mask.dtype) for mask in masks]
        return super().begin_sequence(carried) + self._draw(mx.nd, ones)

    def first_states(self, F: Any, inputs: Tensor) -> States:
        carried, hidden = super().first_states(F, inputs), self.base_cell.state_info()[0]["shape"][1]
        ones = F.ones_like(F.reshape(F.slice_axis(inputs, axis=0, begin=0, end=1), shape=(-3, 0)))
        row = F.broadcast_axis(F.slice_axis(ones, axis=1, begin=0, end=1), axis=1, size=hidden)
        return carried + self._draw(F, [ones, row, row])

    def _draw(self, F: Any, ones: States) -> States:
        return [draw_mask(F, one, rate) for one, rate in zip(ones, self._rates)]

    def hook(self, F: Any, hooks: Hooks, states: States) -> None:
        places = (hooks.inputs, hooks.recurrent, hooks.outputs)
        for place, mask, rate, time in zip(places, states, self._rates, (True, False, True)):
            if rate:
                place.append(_multiply(F, active_mask(F, mask), time))


class StandardDropoutCell(RegularisedCell):
    r"""Dropout with fresh masks at each step on inputs and outputs, not on what recurs (Zaremba et al., 2014).

    .. math:: h_t = f(m_{x,t} x_t,\; h_{t-1}), \quad y_t = m_{y,t} h_t, \quad m \sim Bernoulli(1 - p) / (1 - p)

    `unroll` draws the masks of all steps at once. In a stack, `inputs` on each cell and `outputs` on the top one drop
    every connection that does not recur.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, Gluon's own too.
    inputs, outputs : float, default 0
        Dropout rates p.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: the base cell's list.

    Outputs:
        - **output**: y_t, (batch, hidden).
        - **next states**: the base cell's.

    Raises
    ------
    TypeError
        For a cell without a state, or of several layers.
    ValueError
        For a rate outside [0, 1).

    Examples
    --------
    >>> from mxnet import autograd, gluon, nd
    >>> cell = StandardDropoutCell(gluon.rnn.LSTMCell(8), inputs=0.5, outputs=0.5)
    >>> cell.initialize()
    >>> with autograd.train_mode():
    ...     outputs, (h, c) = cell.unroll(5, nd.ones((5, 3, 4)), layout="TNC", merge_outputs=True)
    >>> bool((outputs == 0).asnumpy().any()), bool((h == 0).asnumpy().any())
    (True, False)
    """

    def __init__(self, base_cell: HybridRecurrentCell, inputs: float = 0.0, outputs: float = 0.0) -> None:
        super().__init__(base_cell)
        self._rates = {"inputs": inputs, "outputs": outputs}
        for name, rate in self._rates.items():
            check_rate(name, rate)

    def _alias(self) -> str:
        return "stddrop"

    def hook(self, F: Any, hooks: Hooks, states: States) -> None:
        for name, rate in self._rates.items():
            if rate:
                getattr(hooks, name).append(lambda sequence, rate=rate: F.Dropout(sequence, p=rate))


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError unless `rate` is a dropout rate, from 0 to below 1."""
    if not 0 <= rate < 1:  # also refuses NaN
        raise ValueError(f"dropout rate of {name} is {rate}: it must be at least 0 and below 1")


def draw_mask(F: Any, ones: Tensor, rate: float) -> Tensor:
    """Return a dropout mask of entries 0 or 1 / (1 - rate), drawn from ones, not from data, in either Gluon mode."""
    return F.Dropout(ones, p=rate, mode="always") if rate else ones


def active_mask(F: Any, mask: Tensor) -> Tensor:
    """Return the (rows, units) mask in train mode, ones in predict mode, decided when the graph runs."""
    one = F.slice(mask, begin=(0, 0), end=(1, 1))
    return 1 + F.broadcast_mul(mask - 1, training_gate(F, one))


def _multiply(F: Any, mask: Tensor, time: bool) -> Callable[[Tensor], Tensor]:
    """Return the product with a (batch, units) mask: of a sequence with time first, or of one step."""
    if time:
        return lambda sequence: F.broadcast_mul(sequence, F.expand_dims(mask, axis=0))
    return lambda one: F.elemwise_mul(one, mask)  # in a graph this tells zero states the size of the batch


def noises(cells: Iterable[HybridRecurrentCell]) -> List[Noise]:
    """Return the noise of each cell, and of the cells that it wraps, in their order."""
    found = []
    for cell in cells:
        found += noises([cell.base_cell]) if hasattr(cell, "base_cell") else []
        found += [cell.noise] if hasattr(cell, "noise") else []
    return found


@contextmanager
def _unmodified(cell: HybridRecurrentCell) -> Iterator[None]:
    """Let a wrapper use its base cell, which Gluon otherwise refuses to a caller as already modified."""
    cell._modified = False
    try:
        yield
    finally:
        cell._modified = True
