"""What tests share: most of it is for those of noise, cells, model and objective."""

from __future__ import annotations

import io
import resource
import tarfile
import time
import zipfile
from contextlib import contextmanager

import matplotlib
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import HybridBlock

from noisin.cells import make_cells
from noisin.config import Config
from noisin.model import make_model
from noisin.noise import Noise, make_family
from noisin.regularisers import NoisyCell, StandardDropoutCell, VariationalDropoutCell
from noisin.system.device import check_dtype
from noisin.system.errors import UserError

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


def _multiplies_bfloat16():
    try:
        check_dtype("bfloat16", mx.cpu())
    except UserError:
        return False
    return True


MULTIPLIES_BFLOAT16 = _multiplies_bfloat16()
needs_bfloat16 = pytest.mark.skipif(
    not MULTIPLIES_BFLOAT16, reason="this processor has no AVX-512, without which MXNet multiplies no bfloat16"
)
needs_matplotlib = pytest.mark.skipif(
    not matplotlib.__version__.startswith("3.10."), reason="matplotlib 3.10 drew the committed figures"
)
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


@contextmanager
def file_size_limit(size):
    """The disk is full for every file of this process beyond so many bytes; the error is EFBIG instead of ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def wait_for(condition, seconds=60, process=None):
    """Return once the condition holds; fail if the process has ended or the time is over before that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def zipped(members, method=zipfile.ZIP_DEFLATED):
    """A zip archive of these contents by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members):
    """The same as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


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


def named_inputs(inputs, states, constants):
    """What a block reads, by name, with gradients attached; without what `constants` names (tokens have none)."""
    arrays = {"inputs": inputs, **{f"state {n}": state for n, state in enumerate(states)}}
    arrays = {name: array for name, array in arrays.items() if name not in constants}
    for array in arrays.values():
        array.attach_grad()
    return arrays


def forward_backward(block, inputs, states, seed=7, constants=()):
    """Outputs, next states, and the gradients of a weighted sum of them all, by name."""
    arrays = named_inputs(inputs, states, constants)
    mx.random.seed(seed)
    with autograd.record():
        outputs, next_states = block(inputs, states)
        loss = weighted_sum([outputs, *next_states])
    loss.backward()
    found = {"outputs": outputs, **{f"state {n}": state for n, state in enumerate(next_states)}}
    found.update({f"gradient of {name}": array.grad for name, array in arrays.items()})
    for name, parameter in block.collect_params().items():
        if parameter.grad_req != "null":
            found[f"gradient of {name}"] = parameter.grad()
    return {name: array.asnumpy() for name, array in found.items()}


def make_up_record(config, epochs, best_epoch, test_ppl):
    """A record as a run would write it but for its seal; what follows from its configuration and epochs is in it."""
    best = epochs[best_epoch - 1]
    return {
        **{name: getattr(config, name) for name in ("corpus", "cell", "activation", "layers", "hidden", "method")},
        "noise": config.noise if "noisin" in config.method else None,
        "gamma": best["gamma"],
        "seed": config.seed,
        "dtype": config.dtype,
        "parameters": 12345,
        "epochs": epochs,
        "best_epoch": best_epoch,
        "valid_ppl": best["valid_ppl"],
        "test_ppl": test_ppl,
        "status": "early-stopped",
        "config": config.to_dict(),
        "corpus_sha256": "0" * 64,
        "floor_ppl": None,
        "git": "0123abc",
        "versions": {"mxnet": "1.9.1"},
        "hardware": {"cpu": "a processor", "threads": 1, "device": "cpu(0)"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-02T00:00:00+00:00",
    }


def without_times(record):
    """The part of a record that a repetition must reproduce to the last bit."""
    timed = ("started", "finished", "git", "digest")
    kept = {key: value for key, value in record.items() if key not in timed}
    kept["epochs"] = [
        {key: value for key, value in epoch.items() if key not in ("seconds", "tokens_per_second")}
        for epoch in record["epochs"]
    ]
    return kept


def weighted_sum(arrays):
    """A sum in which every element has a weight of its own."""
    total = 0
    for n, array in enumerate(arrays):
        weights = np.cos(1.7 * np.arange(array.size) + n).reshape(array.shape)
        total = total + (array * mx.nd.array(weights, dtype=array.dtype)).sum()
    return total


def assert_close(found, expected):
    """Lists of arrays, MXNet's or NumPy's, agree to float32's rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        one, other = (array if isinstance(array, np.ndarray) else array.asnumpy() for array in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def assert_same(found, expected, rtol=1e-4, atol=1e-5):
    """Two results of `forward_backward` agree, entry by entry."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=atol, err_msg=name)


def assert_gradients_match_finite_differences(block, inputs, states, step=1e-5, seed=7, constants=()):
    """In float64, with the noise frozen by reseeding, along a random direction of every array that has a gradient.

    A direction with a component along each element sees an error in any of them; central differences of this step are
    right to about 1e-9. `constants` as in `named_inputs`.
    """
    arrays = named_inputs(inputs, states, constants)
    arrays.update({n: p.data() for n, p in block.collect_params().items() if p.grad_req != "null"})

    def loss():
        mx.random.seed(seed)
        with autograd.record():
            outputs, next_states = block(inputs, states)
            return weighted_sum([outputs, *next_states])

    loss().backward()
    gradients = {name: array.grad.asnumpy().copy() for name, array in arrays.items()}
    for name, array in arrays.items():
        assert array.dtype == np.float64, name
        centre, direction = array.asnumpy().copy(), np.random.standard_normal(array.shape)
        array[:] = centre + step * direction
        above = loss().asscalar()
        array[:] = centre - step * direction
        below = loss().asscalar()
        array[:] = centre
        expected = (above - below) / (2 * step)
        found = (gradients[name] * direction).sum()
        assert abs(found - expected) < 1e-6 * (1 + abs(expected)), f"{name}: {found} is not {expected}"
        assert np.abs(gradients[name]).max() > 0, f"{name} has no gradient"


def numpy_unroll(cell, activation, weights, inputs, states, masks=(1, 1, 1), deviations=None, mode="additive"):
    """One layer's forward pass written from its equations: outputs (T, B, H) and final states.

    `weights` is (i2h_weight, i2h_bias, h2h_weight, h2h_bias), `deviations` gamma * eps of each step (T, B, H).
    """

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    f = {"tanh": np.tanh, "sigmoid": sigmoid, "relu": lambda x: np.maximum(x, 0), None: None}[activation]
    U, b, W, c = weights
    z, memory = states[0], states[-1]
    outputs = []
    for step, x in enumerate(inputs):
        projected, recurrent = (masks[0] * x) @ U.T + b, (masks[1] * z) @ W.T + c
        if cell == "rnn":
            h = f(projected + recurrent)
        elif cell == "lstm":
            i, forget, g, o = np.split(projected + recurrent, 4, axis=1)
            memory = sigmoid(forget) * memory + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(memory)
        else:
            assert cell == "gru", f"write the equations of {cell} here"
            (pr, pu, pn), (rr, ru, rn) = np.split(projected, 3, axis=1), np.split(recurrent, 3, axis=1)
            update = sigmoid(pu + ru)
            h = (1 - update) * np.tanh(pn + sigmoid(pr + rr) * rn) + update * z
        if deviations is not None:
            h = h + deviations[step] if mode == "additive" else h * (1 + deviations[step])
        z = h
        outputs.append(masks[2] * z)
    return np.stack(outputs), [z, memory] if cell == "lstm" else [z]
