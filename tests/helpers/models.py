"""Small noises, cells and language models with weights that depend on their names alone."""

from __future__ import annotations

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from noisin.cells import make_cells
from noisin.config import Config
from noisin.model import make_model
from noisin.noise import Noise, make_family
from noisin.regularisers import NoisyCell, StandardDropoutCell, VariationalDropoutCell

CELLS = [("rnn", "tanh"), ("rnn", "sigmoid"), ("rnn", "relu"), ("lstm", None), ("gru", None)]
# How a graph is run: None is imperatively, otherwise the arguments of `hybridize`.
GRAPHS = [None, {}, {"static_alloc": True}, {"static_alloc": True, "static_shape": True}]
RATES = {"inputs": 0.3, "states": 0.4, "outputs": 0.5}
METHODS = {
    "none": {},
    "dropout": {"dropout": RATES},
    "additive": {"mode": "additive"},
    "multiplicative": {"mode": "multiplicative"},
    "learned additive": {"mode": "additive", "learned": True},
    "learned multiplicative": {"mode": "multiplicative", "learned": True},
}
COMPOSED = {
    "noise and dropout": {"dropout": RATES, "mode": "additive", "learned": True},
    "noise and standard dropout": {"standard": {"inputs": 0.3, "outputs": 0.5}, "mode": "multiplicative"},
}


def make_noise(name="gaussian", gamma=0.5, mode="additive", hybrid=None, parameters=None, **options):
    """An initialised Noise."""
    noise = Noise(make_family(name, **(parameters or {})), gamma, mode, **options)
    noise.initialize()
    if hybrid is not None:
        noise.hybridize(**hybrid)
    return noise


def regularised(cell, method, prefix="noise_", gamma=0.5, rates=None):
    """The cell with what METHODS says around it: dropout inside, noise outside."""
    options = dict({**METHODS, **COMPOSED}[method])
    dropout, standard = options.pop("dropout", None), options.pop("standard", None)
    if dropout:
        cell = VariationalDropoutCell(cell, **(rates or dropout))
    if standard:
        cell = StandardDropoutCell(cell, **standard)
    return NoisyCell(cell, Noise("gaussian", gamma, prefix=prefix, **options)) if options else cell


def make_stack(cell, activation=None, method="none", layers=2, inputs=3, hidden=5, gamma=0.5):
    """An initialised stack of cells; whatever the method, its weights are the same and no bias is zero."""
    stack = make_cells(
        *(cell, hidden, layers, inputs, activation),
        regularise=lambda cell, layer: regularised(cell, method, f"l{layer}_noise_", gamma),
        prefix="cells_",
    )
    stack.initialize()
    set_weights(stack)
    return stack


def make_language_model(vocabulary_size=7, **options):
    """An initialised model of the configuration; whatever the method, its weights are the same and no bias is zero."""
    small = {"cell": "rnn", "activation": "sigmoid", "layers": 2, "hidden": 5, "embedding": 4, "gamma": [0.5]}
    model = make_model(Config(**{**small, **options}), vocabulary_size)
    model.initialize()
    set_weights(model)
    return model


def set_weights(block, scale=0.7):
    """Give every weight and bias values that depend on its name alone."""
    names = sorted(name for name in block.collect_params() if name.endswith(("weight", "bias")))
    random = np.random.RandomState(3)
    for name in names:
        parameter = block.collect_params()[name]
        parameter.set_data(mx.nd.array(random.uniform(-scale, scale, parameter.shape)))


def freeze(noise, eps):
    """Let a Noise, run imperatively, take its draws from the array `eps`, element after element, and nowhere else."""
    noise.family = Frozen(eps)


class Frozen:
    """A stand-in for a family whose draws are given: one unroll and as many steps then see the same noise."""

    def __init__(self, eps):
        self._eps = mx.nd.array(np.ravel(eps))
        self._used = 0

    def sample(self, F, like):
        start, self._used = self._used, self._used + like.size
        return self._eps[start : self._used].reshape(like.shape)

    def left(self):
        return self._eps.size - self._used


class Unrolled(HybridBlock):
    """(inputs, states) -> (outputs, states) by the cell's `unroll`."""

    def __init__(self, cell, length, layout="TNC", merge_outputs=True):
        super().__init__()
        self.cell = cell
        self._arguments = {"layout": layout, "merge_outputs": merge_outputs}
        self._length = length

    def hybrid_forward(self, F, inputs, states):
        return self.cell.unroll(self._length, inputs, states, **self._arguments)


class Predictions(Unrolled):
    """(tokens, states) -> (logits, states) by the language model's `unroll`."""

    def hybrid_forward(self, F, inputs, states):
        return self.cell.unroll(self._length, inputs, states)


class Stepped(HybridBlock):
    """(inputs, states) -> (outputs, states) by one call of the cell for each step; time first, outputs merged."""

    def __init__(self, cell, length):
        super().__init__()
        self.cell = cell
        self._length = length

    def hybrid_forward(self, F, inputs, states):
        outputs = []
        for step in range(self._length):
            one = F.slice_axis(inputs, axis=0, begin=step, end=step + 1)
            output, states = self.cell(F.squeeze(one, axis=0), states)
            outputs.append(output)
        return F.stack(*outputs, axis=0), states


def random_states(cell, batch_size, dtype="float32"):
    """States that are not zero; masks as the cell draws them."""
    states = cell.begin_state(batch_size=batch_size)
    masks = [bool(state.asnumpy().any()) for state in states]
    return [
        (state if mask else mx.nd.random.uniform(-0.8, 0.8, shape=state.shape)).astype(dtype)
        for state, mask in zip(states, masks)
    ]
