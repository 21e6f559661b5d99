"""The compiled operator of an LSTM's step, against MXNet's own operators and against finite differences."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import pytest
from helpers.models import GRAPHS, Unrolled, make_language_model, make_stack, random_states
from mxnet import autograd
from mxnet.gluon import HybridBlock

from noisin import cells
from noisin.cells import LSTMCell
from noisin.config import Config
from noisin.graphs import traced_for
from noisin.native.lstm import lstm_step
from noisin.training import TrainingStep

STATIC = GRAPHS[-1]


def our_step(F, *arrays):
    return lstm_step(*arrays)


def mxnet_step(F, projected, recurrent, memory):
    update, forget, candidate, output = F.split(projected + recurrent, num_outputs=4, axis=1)
    memory = F.sigmoid(forget) * memory + F.sigmoid(update) * F.tanh(candidate)
    return [F.sigmoid(output) * F.tanh(memory), memory]


class Steps(HybridBlock):
    """`uses` steps from the same inputs, the outputs weighted and added; the inputs may be computed in the graph."""

    def __init__(self, step, uses=1, computed=False):
        super().__init__()
        self.step, self.uses, self.computed = step, uses, computed

    def hybrid_forward(self, F, *arrays):
        arrays = [2 * array for array in arrays] if self.computed else arrays
        outputs = [self.step(F, *arrays) for _ in range(self.uses)]
        return [sum((n + 1) * output for n, output in enumerate(same)) for same in zip(*outputs)]


def arrays_of(rows=5, units=7, scale=2.0):
    """Projected input, recurrent product and previous memory: float32."""
    random, shapes = np.random.RandomState(0), ((rows, 4 * units), (rows, 4 * units), (rows, units))
    return [(scale * random.standard_normal(shape)).astype(np.float32) for shape in shapes]


def weights_of(outputs):
    """Weights that differ, for each element of each output."""
    return [np.cos(np.arange(output.size) + n).reshape(output.shape) for n, output in enumerate(outputs)]


def run(block, arrays, hybrid=None, request="write", passes=1):
    """Outputs, and the gradients of their weighted sum, each a list; `request` is the gradients' `grad_req`."""
    arrays = [mx.nd.array(array, dtype=array.dtype) for array in arrays]
    if hybrid is not None:
        block.hybridize(**hybrid)
    for array in arrays:
        array.attach_grad(request)
    for _ in range(passes):
        with autograd.record():
            outputs = block(*arrays)
        autograd.backward(outputs, [mx.nd.array(w, dtype=o.dtype) for o, w in zip(outputs, weights_of(outputs))])
    return [output.asnumpy() for output in outputs], [array.grad.asnumpy() for array in arrays]


def ours(arrays, hybrid=STATIC, **options):
    outputs, gradients = run(Steps(our_step), arrays, hybrid, **options)
    return outputs + gradients


def mxnets(arrays):
    """The same of MXNet's operators, imperatively and in float64."""
    outputs, gradients = run(Steps(mxnet_step), [array.astype(np.float64) for array in arrays])
    return outputs + gradients


def assert_equal(found, expected, rtol=2e-6, atol=1e-6):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("hybrid", GRAPHS[1:])
@pytest.mark.parametrize("rows, units", [(1, 1), (5, 7), (160, 130)])  # the last on all threads
def test_values_and_gradients_are_those_of_mxnets_operators(hybrid, rows, units):
    arrays = arrays_of(rows, units)
    assert_equal(ours(arrays, hybrid, passes=2), mxnets(arrays))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e-3, 0.1, 0.3])
def test_small_inputs_keep_their_relative_precision(scale):
    arrays = arrays_of(scale=scale)
    assert_equal(ours(arrays), mxnets(arrays), rtol=5e-6, atol=1e-8 * scale)


def test_large_and_infinite_inputs_saturate():
    arrays = arrays_of(rows=8)
    arrays[0] *= np.float32([[10], [20], [50], [90], [200], [1e4], [1e30], [np.inf]])
    assert_equal(ours(arrays), mxnets(arrays))


def test_nan_reaches_what_depends_on_it_and_nothing_else():
    for place in range(3):
        arrays = arrays_of()
        arrays[place][3, 2] = np.nan
        for found, expected in zip(ours(arrays), ours(arrays_of())):
            found, expected = (values.reshape(5, -1, 7) for values in (found, expected))
            assert np.isnan(found[3, :, 2]).any()
            found[3, :, 2] = expected[3, :, 2]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("hybrid", GRAPHS[1:])
@pytest.mark.parametrize("request_, passes, uses", [("write", 1, 12), ("add", 3, 1), ("add", 2, 12)])
@pytest.mark.parametrize("computed", [False, True])
def test_gradients_add_up(hybrid, request_, passes, uses, computed):
    # Where a tensor has eight gradients or more, MXNet lets operators add them in place.
    arrays, options = arrays_of(), {"request": request_, "passes": passes}
    found = run(Steps(our_step, uses, computed), arrays, hybrid, **options)[1]
    assert_equal(found, run(Steps(mxnet_step, uses, computed), arrays, **options)[1], 1e-5, 1e-5 * uses)


def test_arrays_that_do_not_fit_are_refused():
    projected, recurrent, memory = arrays = arrays_of()
    for wrong in ([projected, recurrent[:, :-1], memory], [array.astype(np.float64) for array in arrays]):
        with pytest.raises(mx.MXNetError, match="noisin_lstm"):
            ours(wrong)


# The cell that uses it.


def has_operator(cell, what, states, dtype="float32"):
    """Whether the graph that a cell's unrolling traces has our operator."""
    block = Unrolled(cell, 3)
    block.hybridize()
    with traced_for(what):
        block(mx.nd.ones((3, 2, 3), dtype=dtype), states)
    return any(node["op"] == "noisin_lstm" for node in json.loads(block._cached_graph[1].tojson())["nodes"])


def test_a_graph_for_training_alone_has_the_operator():
    for what, expected in (("training", True), ("prediction", False)):
        stack = make_stack("lstm")
        assert has_operator(stack, what, random_states(stack, 2)) == expected


def test_other_activations_and_types_keep_mxnets_operators():
    for cell in (LSTMCell(4, activation="relu"), LSTMCell(4, recurrent_activation="tanh")):
        cell.initialize()
        assert not has_operator(cell, "training", cell.begin_state(2))
    stack = make_stack("lstm")
    stack.cast("float64")
    assert not has_operator(stack, "training", random_states(stack, 2, "float64"), "float64")


def test_a_network_whose_sizes_are_not_known_yet():
    class FromZero(HybridBlock):
        def __init__(self):
            super().__init__()
            self.cell = LSTMCell(6)

        def hybrid_forward(self, F, inputs):
            return self.cell.unroll(3, inputs, layout="TNC", merge_outputs=True)[0]

    network, inputs = FromZero(), mx.nd.random.uniform(shape=(3, 2, 5))
    network.initialize(mx.init.Uniform(0.5))
    network.hybridize(**STATIC)
    with traced_for("training"):
        found = network(inputs)
    network.hybridize(active=False)
    np.testing.assert_allclose(found.asnumpy(), network(inputs).asnumpy(), rtol=1e-5, atol=1e-6)


def test_training_is_the_same_up_to_rounding(monkeypatch):
    segments, options = np.random.RandomState(1).randint(0, 7, (12, 2, 4, 3)), {"cell": "lstm", "layers": 2}
    options.update(method="dropout+noisin", activation=None, hidden=5, gamma=[0.5], embedding=4)
    config, losses = Config(**options, batch_size=3, unroll=4), []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(cells, "has_operator", lambda F, weight: False)
        mx.random.seed(2)
        step = TrainingStep(make_language_model(**options), config, mx.cpu())
        losses.append([step(*segment) for _ in range(2) for segment in segments])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] != losses[1]
