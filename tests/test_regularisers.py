"""Regularisers around one another: equations, draws and moments."""

from __future__ import annotations

import math

import mxnet as mx
import numpy as np
import pytest
from helpers.gradients import assert_close, assert_same, forward_backward
from helpers.models import RATES, Frozen, Stepped, Unrolled, freeze, random_states, set_weights
from helpers.reference import numpy_unroll
from mxnet import autograd
from mxnet.gluon import rnn

from noisin.cells import ElmanCell, GRUCell, LSTMCell
from noisin.noise import Noise
from noisin.regularisers import NoisyCell, StandardDropoutCell, VariationalDropoutCell, noises

T, B, INPUTS, HIDDEN = 4, 3, 3, 5
ERRORS = 5  # standard errors of a statistical bound: two-sided false alarm 6e-7
KINDS = {"rnn": ElmanCell, "lstm": LSTMCell, "gru": GRUCell}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_mode = pytest.mark.parametrize("mode", ["additive", "multiplicative"])


def sequence(length=T, batch_size=B):
    return mx.nd.random.uniform(-1, 1, shape=(length, batch_size, INPUTS))


def noisy(cell, gamma=0.5, mode="additive"):
    return NoisyCell(cell, Noise("gaussian", gamma, mode))


def dropout(cell, **rates):
    return VariationalDropoutCell(cell, **(rates or RATES))


ORDERS = {
    "noise around dropout": lambda cell, mode: noisy(dropout(cell), mode=mode),
    "dropout around noise": lambda cell, mode: dropout(noisy(cell, mode=mode)),
}
each_order = pytest.mark.parametrize("compose", ORDERS.values(), ids=ORDERS)


def made(cell):
    cell.initialize()
    set_weights(cell)
    return cell


def weights_of(cell):
    named = cell._collect_params_with_prefix()
    return [named[name].data().asnumpy() for name in ("i2h_weight", "i2h_bias", "h2h_weight", "h2h_bias")]


def trained(cell, kind, inputs, states):
    """(outputs, states) in train mode, by unrolling or by stepping."""
    with autograd.train_mode():
        return kind(cell, len(inputs))(inputs, states)


@each_kind
@each_mode
@each_order
@pytest.mark.parametrize("way", [Unrolled, Stepped])
def test_noise_and_masks_are_those_of_the_equations_in_either_order(kind, mode, compose, way):
    cell, inputs = made(compose(KINDS[kind](HIDDEN, input_size=INPUTS, prefix="cell_"), mode)), sequence()
    states, eps = random_states(cell, B), np.random.standard_normal((T, B, HIDDEN)).astype(np.float32)
    freeze(noises([cell])[0], eps)
    outputs, after = trained(cell, way, inputs, states)
    arrays = [state.asnumpy() for state in states]
    activation = "tanh" if kind == "rnn" else None
    expected, carried = numpy_unroll(
        *(kind, activation, weights_of(cell), inputs.asnumpy(), arrays[:-3], arrays[-3:], 0.5 * eps, mode)
    )
    assert_close([outputs, *after], [expected, *carried, *arrays[-3:]])
    assert any((mask == 0).any() for mask in arrays[-3:])


@each_mode
@each_order
def test_over_gluons_cell_it_is_the_same_function(mode, compose):
    results, inputs, states = [], sequence(), None
    for new in (LSTMCell, rnn.LSTMCell):
        cell = made(compose(new(HIDDEN, input_size=INPUTS, prefix="cell_"), mode))
        noises([cell])[0].family = Frozen(np.cos(np.arange(T * B * HIDDEN)))
        states = states or random_states(cell, B)
        results.append(forward_backward(Unrolled(cell, T), inputs, states))
    assert_same(*results)


@each_mode
@each_order
@pytest.mark.parametrize("way", [Unrolled, Stepped])
def test_noise_under_masks_is_unbiased(mode, compose, way):
    draws, gamma = 40_000, 0.5
    cell = made(compose(LSTMCell(HIDDEN, input_size=INPUTS, prefix="cell_"), mode))
    states = [mx.nd.broadcast_to(row, (draws, row.shape[1])) for row in random_states(cell, 1)]
    inputs = mx.nd.broadcast_to(sequence(length=1, batch_size=1), (1, draws, INPUTS))
    spread, values = noises([cell])[0].fixed_gamma, []
    for value in (0.0, gamma):
        spread.set_data(mx.nd.array([value]))
        outputs, after = trained(cell, way, inputs, states)
        values.append([array.asnumpy().astype(np.float64) for array in (outputs[0], after[0])])
        output_mask = after[-1].asnumpy()
    (_, hidden), (outputs, z) = values
    hidden = hidden[0]
    variance = gamma**2 * (np.ones(HIDDEN) if mode == "additive" else hidden**2)
    assert (np.abs(z.mean(axis=0) - hidden) <= ERRORS * np.sqrt(variance / draws) + 1e-7).all()
    error = ERRORS * variance * math.sqrt(2 / draws)  # a normal draw's squared deviation has variance 2 variance^2
    assert (np.abs(((z - hidden) ** 2).mean(axis=0) - variance) <= error + 1e-7).all()
    np.testing.assert_allclose(outputs, z * output_mask, rtol=1e-6)


def test_two_noises_and_two_masks_act_one_after_the_other():
    cell = made(noisy(noisy(dropout(dropout(ElmanCell(HIDDEN, input_size=INPUTS, prefix="cell_"))))))
    states, eps = random_states(cell, B), np.random.standard_normal((2, T, B, HIDDEN)).astype(np.float32)
    for noise, values in zip(noises([cell]), eps):
        freeze(noise, values)
    assert len(noises([cell])) == 2 and len(states) == 7
    outputs, after = trained(cell, Unrolled, mx.nd.ones((T, B, INPUTS)), states)
    hidden, *masks = (state.asnumpy() for state in states)
    both = [one * other for one, other in zip(masks[:3], masks[3:])]
    expected, carried = numpy_unroll(
        *("rnn", "tanh", weights_of(cell), mx.nd.ones((T, B, INPUTS)).asnumpy(), [hidden], both, 0.5 * eps.sum(axis=0))
    )
    assert_close([outputs, after[0]], [expected, carried[0]])


# Standard dropout.


@each_kind
@pytest.mark.parametrize("way", [Unrolled, Stepped])
def test_standard_dropout_drops_outputs_afresh_at_each_step_and_never_what_recurs(kind, way):
    rows, rate = 50, 0.4
    cell = made(noisy(StandardDropoutCell(KINDS[kind](HIDDEN, input_size=INPUTS, prefix="cell_"), outputs=rate)))
    inputs, states = sequence(batch_size=rows), random_states(cell, rows)
    eps = np.random.standard_normal((T, rows, HIDDEN)).astype(np.float32)
    freeze(cell.noise, eps)
    outputs, after = trained(cell, way, inputs, states)
    activation = "tanh" if kind == "rnn" else None
    arrays = [state.asnumpy() for state in states]
    z, carried = numpy_unroll(kind, activation, weights_of(cell), inputs.asnumpy(), arrays, deviations=0.5 * eps)
    assert_close(after, carried)
    kept = outputs.asnumpy() != 0
    np.testing.assert_allclose(outputs.asnumpy(), kept * z / (1 - rate), rtol=1e-4, atol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < ERRORS * math.sqrt(rate * (1 - rate) / kept.size)
    assert all((kept[step] != kept[step + 1]).mean() > 0.3 for step in range(T - 1))


@pytest.mark.parametrize("way", [Unrolled, Stepped])
def test_standard_dropout_drops_inputs_afresh_at_each_step(way):
    rows, rate = 50, 0.4
    cell = made(StandardDropoutCell(LSTMCell(HIDDEN, input_size=INPUTS, prefix="cell_"), inputs=rate))
    inputs = sequence(batch_size=rows)
    kept = forward_backward(way(cell, T), inputs, random_states(cell, rows))["gradient of inputs"] != 0
    assert abs(kept.mean() - (1 - rate)) < ERRORS * math.sqrt(rate * (1 - rate) / kept.size)
    assert all((kept[step] != kept[step + 1]).mean() > 0.3 for step in range(T - 1))


def test_standard_dropout_is_off_in_predict_mode():
    cell = made(StandardDropoutCell(LSTMCell(HIDDEN, input_size=INPUTS, prefix="cell_"), 0.5, 0.5))
    plain = made(LSTMCell(HIDDEN, input_size=INPUTS, prefix="cell_"))
    inputs, states = sequence(), random_states(plain, B)
    for found, expected in zip(Unrolled(cell, T)(inputs, states)[1], Unrolled(plain, T)(inputs, states)[1]):
        assert (found == expected).asnumpy().all()


@pytest.mark.parametrize("name", ["inputs", "outputs"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_impossible_rate_of_standard_dropout_is_refused(name, rate):
    with pytest.raises(ValueError, match=f"dropout rate of {name} is {rate}"):
        StandardDropoutCell(LSTMCell(HIDDEN), **{name: rate})
