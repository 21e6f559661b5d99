"""Regularisers of a recurrent cell: noise, variational dropout and standard dropout; each wraps any cell and any other.

Whatever their order around a cell, they act on one step as

    h_t = f(m_x x_t, m_h z_{t-1}),    z_t ~ noise(h_t),    y_t = m_y z_t,

where f is the cell, y_t is its output and z_t is what the next step sees. Noise acts on the hidden state, a recurrent
mask on what the recurrent weights multiply, and an output mask on the output alone. Of several regularisers at one
place the innermost acts first, except on the inputs, where the outermost does.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import ModuleType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple, Union

import mxnet as mx
from mxnet.gluon import Parameter, rnn
from mxnet.gluon.rnn.rnn_cell import HybridRecurrentCell, ModifierCell

from noisin.cells import Hooks, Outputs, SequenceCell, States, begin_sequence, run
from noisin.graphs import Tensor, training_gate
from noisin.noise import Noise

MASKS = ("inputs", "states", "outputs")  # in their order in VariationalDropoutCell's states


class RegularisedCell(SequenceCell, ModifierCell):
    """A cell around another; a subclass defines in `hook` what acts where.

    In `save_parameters`, weights have the same names as without the wrapper, and either loads the other's file.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, also Gluon's own and its modifiers, whose first state is its hidden state.

    Raises
    ------
    TypeError
        For a cell without a state, or with several layers: wrap each layer's cell.
    """

    stochastic = True

    def __init__(self, base_cell: HybridRecurrentCell) -> None:
        several = isinstance(base_cell, (rnn.SequentialRNNCell, rnn.HybridSequentialRNNCell, rnn.BidirectionalCell))
        if several or not base_cell.state_info():
            raise TypeError(f"{type(self).__name__} acts on one layer with a state: wrap each cell of {base_cell.name}")
        super().__init__(base_cell)

    def hook(self, F: ModuleType, hooks: Hooks, states: States) -> None:
        """Add to `hooks` what acts on the cell.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        hooks : Hooks
            Modified in place.
        states : list of tensor
            Only the states that this cell adds to its base cell's.

        Raises
        ------
        TypeError
            If the subclass does not define `hook`.
        """
        raise TypeError(f"{type(self).__name__} does not define hook")

    def _chain(self) -> Tuple[HybridRecurrentCell, List[RegularisedCell]]:
        """Return the innermost cell, and the regularisers around it from the inside out."""
        base = self.base_cell
        core, inner = base._chain() if isinstance(base, RegularisedCell) else (base, [])
        return core, inner + [self]

    def sequence(self, F: ModuleType, length: int, inputs: Tensor, states: States) -> Tuple[Outputs, States]:
        core, around = self._chain()
        hooks, end = Hooks(), len(core.state_info())
        # In a static graph MXNet fails where an output is also an input (cf. apache/mxnet#20293).
        own, rest = states[:end], [state * 1 for state in states[end:]]
        for cell in around:
            begin, end = end, len(cell.state_info())
            cell.hook(F, hooks, states[begin:end])
        hooks.inputs.reverse()
        outputs, own = run(core, F, length, inputs, own, hooks)
        return outputs, own + rest

    def hybrid_forward(self, F: ModuleType, inputs: Tensor, states: States) -> Tuple[Tensor, States]:
        """Do one step from x_t (batch, input size); return (y_t (batch, hidden), next states)."""
        # One step is a sequence of one.
        outputs, states = self.sequence(F, 1, F.expand_dims(inputs, axis=0), states)
        return outputs[0] if isinstance(outputs, list) else F.reshape(outputs, shape=(-3, -2)), states

    def first_states(self, F: ModuleType, inputs: Tensor) -> States:
        with _unmodified(self.base_cell):
            if isinstance(self.base_cell, SequenceCell):
                return self.base_cell.first_states(F, inputs)
            return SequenceCell.first_states(self.base_cell, F, inputs)

    def begin_state(self, batch_size: int = 0, func: Callable = mx.nd.zeros, **kwargs: Any) -> States:
        """Return zero states for `batch_size` sequences; `func` defaults to `nd.zeros`, as in a plain cell."""
        return super().begin_state(func=func, batch_size=batch_size, **kwargs)

    def begin_sequence(self, states: States) -> States:
        """Return the states with which the base cell begins a new sequence (see `cells.begin_sequence`)."""
        return begin_sequence(self.base_cell, states)

    def _collect_params_with_prefix(self, prefix: str = "") -> Dict[str, Parameter]:
        named = self.base_cell._collect_params_with_prefix(prefix)
        for name, child in self._children.items():
            if child is not self.base_cell:
                named.update(child._collect_params_with_prefix(f"{prefix}.{name}" if prefix else name))
        return named

    def load_parameters(
        self,
        filename: str,
        ctx: Union[mx.Context, Sequence[mx.Context], None] = None,
        allow_missing: bool = False,
        ignore_extra: bool = False,
        **options: Any,
    ) -> None:
        """Load a file that `save_parameters` of this cell or of the base cell wrote.

        Parameters
        ----------
        filename, ctx, allow_missing, ignore_extra, **options
            As in `mxnet.gluon.Block.load_parameters`.

        Raises
        ------
        ValueError
            If the base cell's file lacks a parameter of this cell (e.g. gamma) and `allow_missing` is false.
        """
        if any("." in name for name in mx.nd.load(filename)):
            return super().load_parameters(filename, ctx, allow_missing, ignore_extra, **options)
        # Names without a dot belong to a single cell; Gluon would look for them under this cell's prefix.
        missing = set(self._collect_params_with_prefix()) - set(self.base_cell._collect_params_with_prefix())
        if missing and not allow_missing:
            raise ValueError(f"{filename} has no {', '.join(sorted(missing))}: allow_missing=True keeps what there is")
        return self.base_cell.load_parameters(filename, ctx, allow_missing, ignore_extra, **options)


class NoisyCell(RegularisedCell):
    r"""Inject unbiased noise into the hidden state of a cell: NOISIN (paper, section 3).

    .. math:: h_t = f(x_t, z_{t-1}), \quad z_t \sim noise(h_t, \gamma), \quad E[z_t | z_{t-1}] = h_t

    Noise is drawn once per unit and step: the output and the state that the next step sees are the same z_t. If a
    cell's output is not its first state (`ResidualCell`, `ZoneoutCell`), the same draw perturbs both. The noise acts in
    Gluon's train mode and is off in predict mode.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, also Gluon's own.
    noise : Noise

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: the base cell's list; the hidden state z_{t-1} first, (batch, hidden).

    Outputs:
        - **output**: z_t, (batch, hidden).
        - **next states**: z_t, then the base cell's other states, unchanged.

    Raises
    ------
    TypeError
        For a cell without a state, or with several layers.

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

    def hook(self, F: ModuleType, hooks: Hooks, states: States) -> None:
        hooks.hidden.append(self.noise)


class VariationalDropoutCell(RegularisedCell):
    r"""Dropout with one mask per sequence on inputs, recurrent state and outputs (Gal and Ghahramani, 2016).

    .. math:: h_t = f(m_x x_t,\; m_h h_{t-1}), \quad y_t = m_y h_t, \quad m \sim Bernoulli(1 - p) / (1 - p)

    The masks are the last three states: `begin_state` draws them, each step and `unroll` return them unchanged, and
    `begin_sequence` draws new masks for the next sequence. The cell itself stores nothing random. The masks act in
    Gluon's train mode and are ignored in predict mode. m_h acts on what the recurrent weights multiply; in a cell from
    outside this package, it acts on everything that reads h_{t-1}.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, also Gluon's own.
    inputs, states, outputs : float in [0, 1), default 0
        Dropout rates p of x_t, h_{t-1} and y_t.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: the base cell's list, then m_x (batch, input size), m_h and m_y, each (batch, hidden).

    Outputs:
        - **output**: y_t, (batch, hidden).
        - **next states**: like `states`, the masks unchanged.

    Raises
    ------
    TypeError
        For a cell without a state, or with several layers.
    ValueError
        For a rate outside [0, 1).

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
        """Describe the base cell's states, then the masks: (batch, input size), (batch, hidden), (batch, hidden)."""
        carried = self.base_cell.state_info(batch_size)
        core = self._chain()[0]
        while hasattr(core, "base_cell"):
            core = core.base_cell
        weight = getattr(core, "i2h_weight", None)
        inputs = (batch_size, weight.shape[1] if weight is not None else 0)
        masks = (inputs, carried[0]["shape"], carried[0]["shape"])
        return carried + [{"shape": shape, "__layout__": "NC"} for shape in masks]

    def begin_state(self, batch_size: int = 0, func: Callable = mx.nd.zeros, **kwargs: Any) -> States:
        """Return zero states and freshly drawn masks.

        Parameters
        ----------
        batch_size : int
        func, **kwargs
            As in Gluon; `func` makes the base cell's states.

        Returns
        -------
        list of tensor
            As `state_info` describes them.

        Raises
        ------
        ValueError
            If the batch size or the input size is unknown: give them, or let `unroll` draw the masks.
        """
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
        """Return the base cell's states with newly drawn masks, for the next sequence (e.g. a BPTT segment)."""
        carried, masks = states[: -len(MASKS)], states[-len(MASKS) :]
        ones = [mx.nd.ones(mask.shape, mask.context, mask.dtype) for mask in masks]
        return super().begin_sequence(carried) + self._draw(mx.nd, ones)

    def first_states(self, F: ModuleType, inputs: Tensor) -> States:
        """Return zero states and newly drawn masks for inputs (T, batch, input size)."""
        carried, hidden = super().first_states(F, inputs), self.base_cell.state_info()[0]["shape"][1]
        ones = F.ones_like(F.reshape(F.slice_axis(inputs, axis=0, begin=0, end=1), shape=(-3, 0)))
        row = F.broadcast_axis(F.slice_axis(ones, axis=1, begin=0, end=1), axis=1, size=hidden)
        return carried + self._draw(F, [ones, row, row])

    def _draw(self, F: ModuleType, ones: States) -> States:
        return [draw_mask(F, one, rate) for one, rate in zip(ones, self._rates)]

    def hook(self, F: ModuleType, hooks: Hooks, states: States) -> None:
        places = (hooks.inputs, hooks.recurrent, hooks.outputs)
        for place, mask, rate, time in zip(places, states, self._rates, (True, False, True)):
            if rate:
                place.append(_multiply(F, active_mask(F, mask), time))


class StandardDropoutCell(RegularisedCell):
    r"""Dropout with new masks at each step on inputs and outputs, not on the recurrent state (Zaremba et al., 2014).

    .. math:: h_t = f(m_{x,t} x_t,\; h_{t-1}), \quad y_t = m_{y,t} h_t, \quad m \sim Bernoulli(1 - p) / (1 - p)

    `unroll` draws the masks of all steps at once. In a stack, set `inputs` on each cell and `outputs` on the top cell
    to drop every connection that is not recurrent.

    Parameters
    ----------
    base_cell : HybridRecurrentCell
        Any cell of one layer, also Gluon's own.
    inputs, outputs : float in [0, 1), default 0
        Dropout rates p of x_t and y_t.

    Inputs:
        - **inputs**: x_t, (batch, input size).
        - **states**: the base cell's list.

    Outputs:
        - **output**: y_t, (batch, hidden).
        - **next states**: the base cell's.

    Raises
    ------
    TypeError
        For a cell without a state, or with several layers.
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

    def hook(self, F: ModuleType, hooks: Hooks, states: States) -> None:
        for name, rate in self._rates.items():
            if rate:
                getattr(hooks, name).append(lambda sequence, rate=rate: F.Dropout(sequence, p=rate))


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError, naming what is dropped, unless the dropout rate is in [0, 1)."""
    if not 0 <= rate < 1:  # also refuses NaN
        raise ValueError(f"dropout rate of {name} is {rate}: it must be at least 0 and below 1")


def draw_mask(F: ModuleType, ones: Tensor, rate: float) -> Tensor:
    """Draw a mask of the shape of `ones`, in either Gluon mode: 0 with probability `rate`, else 1 / (1 - rate)."""
    return F.Dropout(ones, p=rate, mode="always") if rate else ones


def active_mask(F: ModuleType, mask: Tensor) -> Tensor:
    """Return the mask (rows, units) in train mode and ones in predict mode, evaluated each time the graph runs."""
    one = F.slice(mask, begin=(0, 0), end=(1, 1))
    return 1 + F.broadcast_mul(mask - 1, training_gate(F, one))


def _multiply(F: ModuleType, mask: Tensor, time: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies a sequence (T, batch, units), or one step, by a mask (batch, units)."""
    if time:
        return lambda sequence: F.broadcast_mul(sequence, F.expand_dims(mask, axis=0))
    return lambda one: F.elemwise_mul(one, mask)  # in a graph, zero states get their batch size from the mask


def noises(cells: Iterable[HybridRecurrentCell]) -> List[Noise]:
    """Return the noise of each cell and of the cells that it wraps, in order, innermost first."""
    found = []
    for cell in cells:
        found += noises([cell.base_cell]) if hasattr(cell, "base_cell") else []
        found += [cell.noise] if hasattr(cell, "noise") else []
    return found


@contextmanager
def _unmodified(cell: HybridRecurrentCell) -> Iterator[None]:
    """Allow calls to a wrapped cell, which Gluon refuses because the cell is modified."""
    cell._modified = False
    try:
        yield
    finally:
        cell._modified = True
