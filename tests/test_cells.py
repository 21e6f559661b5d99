"""Recurrent cells, their noise and their dropout masks."""

from __future__ import annotations

import math
from contextlib import nullcontext

import mxnet as mx
import numpy as np
import pytest
from helpers.gradients import assert_close, assert_gradients_match_finite_differences, assert_same, forward_backward
from helpers.models import (
    CELLS,
    COMPOSED,
    GRAPHS,
    METHODS,
    RATES,
    Stepped,
    Unrolled,
    freeze,
    make_language_model,
    make_noise,
    make_stack,
    random_states,
)
from helpers.reference import numpy_unroll
from mxnet import autograd, gluon

from noisin.cells import begin_sequence, make_cells
from noisin.graphs import traced_for
from noisin.noise import FAMILIES
from noisin.regularisers import VariationalDropoutCell, draw_mask
from noisin.system.errors import plural

T, B, INPUTS, HIDDEN = 4, 3, 3, 5
ERRORS = 5  # standard errors of a statistical bound: two-sided false alarm 6e-7
NOISY = [name for name in METHODS if "mode" in METHODS[name]]

each_cell = pytest.mark.parametrize("cell, activation", CELLS)
# An activation is one function of all that comes before it, so that its interactions are those of another.
each_kind = pytest.mark.parametrize("cell, activation", [("rnn", "sigmoid"), ("lstm", None), ("gru", None)])
each_noise = pytest.mark.parametrize("method", NOISY)
each_graph = pytest.mark.parametrize("hybrid", [{}, GRAPHS[-1]])


def sequence(dtype="float32", length=T, batch_size=B):
    return mx.nd.random.uniform(-1, 1, shape=(length, batch_size, INPUTS), dtype=dtype)


def train_unroll(stack, inputs, states, layout="TNC", merged=True, **options):
    """`unroll` in train mode, of a (T, B, ...) sequence and back, whatever the layout between."""
    inputs = inputs if layout == "TNC" else inputs.swapaxes(0, 1)
    with autograd.train_mode():
        outputs, states = stack.unroll(inputs.shape[layout.index("T")], inputs, states, layout, merged, **options)
    assert isinstance(outputs, list) == (not merged)
    if not merged:
        return mx.nd.stack(*outputs, axis=0), states
    return outputs if layout == "TNC" else outputs.swapaxes(0, 1), states


def train_steps(stack, inputs, states):
    """As `train_unroll` by stepping, with the states after each step."""
    outputs, after = [], []
    with autograd.train_mode():
        for one in inputs:
            output, states = stack(one, states)
            outputs.append(output)
            after.append(states)
    return mx.nd.stack(*outputs, axis=0), after


def has_noise(method):
    return "mode" in {**METHODS, **COMPOSED}[method]


def freeze_all(stack, eps):
    """Give each layer its noise; without any, do nothing."""
    for layer, values in zip(stack, eps):
        freeze(layer.noise, values)


def weights_of(stack, layer):
    parameters = {name.split(f"l{layer}_", 1)[1]: p for name, p in stack.collect_params(f".*l{layer}_.*").items()}
    return [parameters[n].data().asnumpy() for n in ("i2h_weight", "i2h_bias", "h2h_weight", "h2h_bias")]


def numpy_stack(stack, cell, activation, inputs, states, eps=None, mode="additive", gamma=0.5):
    """Outputs and states of a whole stack, from the equations, under the masks that `states` holds."""
    outputs, next_states, states = inputs.asnumpy(), [], [state.asnumpy() for state in states]
    own = len(states) // len(stack)
    for layer in range(len(stack)):
        mine = states[layer * own : (layer + 1) * own]
        masked = own > 2
        carried, masks = (mine[:-3], mine[-3:]) if masked else (mine, (1, 1, 1))
        deviations = None if eps is None else gamma * eps[layer]
        outputs, carried = numpy_unroll(
            cell, activation, weights_of(stack, layer), outputs, carried, masks, deviations, mode
        )
        next_states += carried + (list(masks) if masked else [])
    return outputs, next_states


# The deterministic cells are what the field calls by these names.


@each_cell
@pytest.mark.parametrize("layers", [1, 3])
def test_deterministic_stack_equals_its_equations(cell, activation, layers):
    stack, inputs = make_stack(cell, activation, layers=layers), sequence()
    states = random_states(stack, B)
    outputs, next_states = stack.unroll(T, inputs, states, layout="TNC", merge_outputs=True)
    expected, expected_states = numpy_stack(stack, cell, activation, inputs, states)
    np.testing.assert_allclose(outputs.asnumpy(), expected, rtol=1e-4, atol=1e-6)
    for state, values in zip(next_states, expected_states):
        np.testing.assert_allclose(state.asnumpy(), values, rtol=1e-4, atol=1e-6)


def gluon_layers(cell, activation, fused):
    """Gluon's own two layers, of the names that `make_stack` gives its parameters."""
    stack = gluon.nn.Sequential() if fused else gluon.rnn.HybridSequentialRNNCell()
    for layer, size in enumerate([INPUTS, HIDDEN]):
        options = {"activation": activation} if cell == "rnn" else {}
        if fused:
            kind = {"rnn": gluon.rnn.RNN, "lstm": gluon.rnn.LSTM, "gru": gluon.rnn.GRU}[cell]
            stack.add(kind(HIDDEN, num_layers=1, input_size=size, prefix=f"cells_l{layer}_", **options))
        else:
            kind = {"rnn": gluon.rnn.RNNCell, "lstm": gluon.rnn.LSTMCell, "gru": gluon.rnn.GRUCell}[cell]
            stack.add(kind(HIDDEN, input_size=size, prefix=f"cells_l{layer}_", **options))
    stack.initialize()
    return stack


def copy_weights(source, target):
    """By order: the fused layers put an `l0_` of their own into the names."""
    source, target = (
        [p for p in block.collect_params().values() if p.name.endswith(("weight", "bias"))]
        for block in (source, target)
    )
    assert len(source) == len(target)
    for one, other in zip(source, target):
        assert one.name.split("_")[-2:] == other.name.split("_")[-2:]
        assert np.abs(one.data().asnumpy()).min() > 0
        other.set_data(one.data())
    return list(zip(source, target))


@pytest.mark.parametrize("cell, activation", [case for case in CELLS if case[1] != "sigmoid"])
def test_deterministic_stack_equals_gluons_fused_layers_gradients_too(cell, activation):
    stack, layers, inputs = make_stack(cell, activation), gluon_layers(cell, activation, fused=True), sequence()
    pairs, weights = copy_weights(stack, layers), sequence(length=T).slice_axis(2, 0, 1)
    results = []
    for call in (lambda: stack.unroll(T, inputs, None, "TNC", True)[0], lambda: layers(inputs)):
        inputs.attach_grad()
        with autograd.record():
            outputs = call()
            loss = (outputs * weights).sum()
        loss.backward()
        results.append((outputs.asnumpy(), inputs.grad.asnumpy()))
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for ours, theirs in pairs:
        assert np.abs(ours.grad().asnumpy()).max() > 1e-3
        np.testing.assert_allclose(ours.grad().asnumpy(), theirs.grad().asnumpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.smoke
@each_cell
@pytest.mark.parametrize("kind", [Unrolled, Stepped])
def test_deterministic_stack_equals_gluons_own_cells(cell, activation, kind):
    stack, theirs, inputs = make_stack(cell, activation), gluon_layers(cell, activation, fused=False), sequence()
    copy_weights(stack, theirs)
    states = random_states(stack, B)
    expected = forward_backward(Unrolled(theirs, T), inputs, states)
    assert_same(forward_backward(kind(stack, T), inputs, states), expected)


@each_kind
@each_noise
@pytest.mark.parametrize("kind", [Unrolled, Stepped])
def test_noise_of_spread_0_is_the_deterministic_cell_exactly(cell, activation, method, kind):
    plain, noisy = make_stack(cell, activation), make_stack(cell, activation, method)
    for layer in noisy:
        layer.noise._lower_bound = 0.0
        for parameter in layer.noise.collect_params().values():  # softplus(-1000) is 0
            parameter.set_data(mx.nd.array([-1000.0 if parameter.name.endswith("rho") else 0.0]))
        assert layer.noise.gamma == 0
    inputs, states = sequence(), random_states(plain, B)
    expected = forward_backward(kind(plain, T), inputs, states)
    found = forward_backward(kind(noisy, T), inputs, states)
    for name, values in expected.items():
        assert (found[name] == values).all(), name


# One sequence, in every form, is the same function of inputs, states and noise.


@each_kind
@pytest.mark.parametrize("method", ["none", "dropout", "additive", "multiplicative", "noise and dropout"])
@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("layout, merged", [("TNC", True), ("NTC", False), ("TNC", None), ("NTC", True)])
def test_unroll_equals_stepping_and_the_equations(cell, activation, method, length, layout, merged):
    stack, inputs = make_stack(cell, activation, method), sequence(length=length)
    states, eps = random_states(stack, B), np.random.standard_normal((2, length, B, HIDDEN)).astype(np.float32)
    noisy, mode = has_noise(method), {**METHODS, **COMPOSED}[method].get("mode")
    freeze_all(stack, eps if noisy else [])
    outputs, next_states = train_unroll(stack, inputs, states, layout, merged)
    freeze_all(stack, eps if noisy else [])
    stepped, after = train_steps(stack, inputs, states)
    expected = numpy_stack(stack, cell, activation, inputs, states, eps if noisy else None, mode)
    assert_close([outputs, *next_states], [stepped, *after[-1]])
    assert_close([outputs, *next_states], [expected[0], *expected[1]])
    assert all(layer.noise.family.left() == 0 for layer in stack if noisy)


@pytest.mark.parametrize("cell, activation", [("rnn", "tanh"), ("lstm", None)])
@pytest.mark.parametrize("method", ["none", "dropout", "additive", "noise and dropout"])
@pytest.mark.parametrize("layout, merged", [("TNC", True), ("NTC", False)])
def test_valid_length_masks_outputs_and_keeps_the_last_valid_state(cell, activation, method, layout, merged):
    stack, inputs, valid = make_stack(cell, activation, method), sequence(batch_size=3), [1, T, 2]
    states, eps = random_states(stack, 3), np.random.standard_normal((2, T, 3, HIDDEN))
    freeze_all(stack, eps if has_noise(method) else [])
    found, next_states = train_unroll(stack, inputs, states, layout, merged, valid_length=mx.nd.array(valid))
    freeze_all(stack, eps if has_noise(method) else [])
    stepped, after = train_steps(stack, inputs, states)
    is_valid = np.arange(T)[:, None] < np.array(valid)
    assert_close([found], [stepped.asnumpy() * is_valid[:, :, None]])
    last = [np.stack([after[v - 1][n][row].asnumpy() for row, v in enumerate(valid)]) for n in range(len(states))]
    assert_close(next_states, last)


@each_cell
def test_unroll_takes_a_list_of_steps_and_begins_from_zero_states(cell, activation):
    stack, inputs = make_stack(cell, activation, "additive"), sequence()
    expected = stack.unroll(T, inputs, stack.begin_state(batch_size=B), "TNC", True)
    outputs, states = stack.unroll(T, list(inputs), None, "TNC", True)
    assert_close([outputs, *states], [expected[0], *expected[1]])


@pytest.mark.parametrize("layout, steps", [("TNC", T + 1), ("NTC", T + 1), ("TNC", 1), ("NTC", 1)])
@pytest.mark.parametrize("method", ["none", "dropout"])
def test_a_sequence_of_another_length_is_refused(method, layout, steps):
    stack = make_stack("rnn", "tanh", method)
    inputs = mx.nd.ones((steps, B, INPUTS) if layout == "TNC" else (B, steps, INPUTS))
    with pytest.raises(ValueError, match=rf"in layout {layout} have {plural(steps, 'step')}: {T} expected"):
        stack.unroll(T, inputs, stack.begin_state(batch_size=B), layout, True)


def test_an_unknown_start_or_dtype_is_refused():
    with pytest.raises(
        ValueError, match="recurrent_init is 'ortogonal': it must be one of orthogonal, identity, uniform"
    ):
        make_cells("rnn", 4, 1, input_size=4, recurrent_init="ortogonal")
    model = make_language_model()
    with pytest.raises(ValueError, match="dtype is 'bf16': it must be float32 or bfloat16"):
        model.unroll(T, mx.nd.zeros((T, B)), model.begin_state(B), "bf16")


# One function, in every kind of graph.


def assert_graph_equals_imperative(kind, cell, activation, method, hybrid, family="gaussian"):
    stack, inputs = make_stack(cell, activation, method), sequence()
    for layer in stack:
        if method in NOISY:
            layer.noise.family = make_noise(family).family
    states = random_states(stack, B)
    block = kind(stack, T)
    expected = forward_backward(block, inputs, states)
    # An evaluation first: what it traces must not be what training runs.
    block.hybridize(**hybrid)
    with traced_for("training"):
        block(inputs, states)
    for _ in range(2):  # static memory is used again
        assert_same(forward_backward(block, inputs, states), expected)
    for name, values in expected.items():
        if name.startswith("gradient of cells") or "noise" in name:
            assert np.abs(values).max() > 1e-4, f"{name} is zero"
    return expected


@each_kind
@pytest.mark.parametrize("method", METHODS)
@each_graph
@pytest.mark.parametrize("kind", [Unrolled, Stepped])
def test_hybridized_equals_imperative_gradients_too(cell, activation, method, hybrid, kind):
    expected = assert_graph_equals_imperative(kind, cell, activation, method, hybrid)
    if "learned" in method:
        assert {"gradient of l0_noise_rho", "gradient of l1_noise_rho"} <= set(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_hybridized_equals_imperative_for_each_family(family):
    assert_graph_equals_imperative(Unrolled, "rnn", "tanh", "learned additive", GRAPHS[-1], family)


@pytest.mark.parametrize("cell, activation", [("rnn", "relu"), ("lstm", None), ("gru", None)])
@pytest.mark.parametrize("method", METHODS)
@each_graph
def test_cells_hybridized_one_by_one_equal_imperative(cell, activation, method, hybrid):
    stack, inputs = make_stack(cell, activation, method), sequence()
    states = random_states(stack, B)
    expected = forward_backward(Stepped(stack, T), inputs, states)
    stack.hybridize(**hybrid)
    with traced_for("training"):
        assert_same(forward_backward(Stepped(stack, T), inputs, states), expected)


# Gradients.


@pytest.mark.parametrize(
    "cell, activation, method",
    [(*cell, "none") for cell in CELLS]
    + [(cell, "tanh", method) for cell in ("rnn", "lstm", "gru") for method in [*METHODS, *COMPOSED][1:]],
)
def test_gradients_match_finite_differences(cell, activation, method):
    stack = make_stack(cell, activation, method)
    states = random_states(stack, B, "float64")
    stack.cast("float64")
    assert_gradients_match_finite_differences(Unrolled(stack, T), sequence("float64"), states)


@pytest.mark.parametrize("method", ["learned additive", "learned multiplicative", *COMPOSED])
@pytest.mark.parametrize("kind", [Unrolled, Stepped])
@pytest.mark.parametrize("what", ["", "training"])
@each_graph
def test_gradients_of_graphs_match_finite_differences(method, kind, what, hybrid):
    stack, inputs = make_stack("gru", None, method, layers=1), sequence("float64")
    states, block = random_states(stack, B, "float64"), kind(stack, T)
    stack.cast("float64")
    block.hybridize(**hybrid)
    with traced_for(what) if what else nullcontext():
        block(inputs, states)  # an evaluation first: what it traces must not be what training runs
    assert_gradients_match_finite_differences(block, inputs, states)


# The noise: one draw a unit and step, unbiased.


@each_kind
@pytest.mark.parametrize("method", ["additive", "learned multiplicative"])
@pytest.mark.parametrize("kind", [Unrolled, Stepped])
@pytest.mark.parametrize("hybrid", [None, GRAPHS[-1]])
def test_output_and_next_state_share_the_draw(cell, activation, method, kind, hybrid):
    stack, inputs = make_stack(cell, activation, method), sequence()
    block, states = kind(stack, T), random_states(stack, B)
    if hybrid is not None:
        block.hybridize(**hybrid)
    own = len(states) // 2
    clean = block(inputs, states)[0]
    with autograd.train_mode():
        outputs, next_states = block(inputs, states)
    assert (outputs[-1] == next_states[own]).asnumpy().all()
    assert (outputs != clean).asnumpy().mean() > 0.2  # multiplied zeros of a rectifier stay zeros


@each_noise
@pytest.mark.parametrize("kind", [Unrolled, Stepped])
@pytest.mark.parametrize("hybrid", [None, GRAPHS[-1]])
def test_draws_differ_between_units_rows_steps_layers_and_calls(method, kind, hybrid):
    stack, inputs = make_stack("rnn", "sigmoid", method), sequence()
    for parameter in stack.collect_params(".*(weight|bias)").values():
        parameter.set_data(parameter.data() * 0)  # h is 1/2 everywhere, so that each z shows its own draw
    block, states = kind(stack, T), random_states(stack, B)
    if hybrid is not None:
        block.hybridize(**hybrid)
    with autograd.train_mode():
        calls = [block(inputs, states) for _ in range(2)]
    seen = np.concatenate([array.asnumpy().ravel() for outputs, after in calls for array in (outputs[:-1], *after)])
    assert np.unique(seen).size == seen.size


@pytest.mark.parametrize("method", ["additive", "multiplicative"])
@each_cell
def test_one_noisy_step_is_unbiased_and_leaves_other_states_alone(cell, activation, method):
    draws, gamma = 40_000, 0.5
    stack = make_stack(cell, activation, method, layers=1, gamma=gamma)
    states = [mx.nd.broadcast_to(row, (draws, HIDDEN)) for row in random_states(stack, 1)]
    inputs = mx.nd.broadcast_to(sequence(length=1, batch_size=1)[0], (draws, INPUTS))
    clean, clean_states = stack(inputs, states)
    with autograd.train_mode():
        noisy, next_states = stack(inputs, states)
    hidden, noisy = clean[0].asnumpy().astype(np.float64), noisy.asnumpy().astype(np.float64)
    variance = gamma**2 * (np.ones(HIDDEN) if method == "additive" else hidden**2)
    assert (np.abs(noisy.mean(axis=0) - hidden) <= ERRORS * np.sqrt(variance / draws) + 1e-7).all()
    # A normal draw's squared deviation has variance 2 variance^2.
    error = ERRORS * variance * math.sqrt(2 / draws)
    assert (np.abs(((noisy - hidden) ** 2).mean(axis=0) - variance) <= error + 1e-7).all()
    for ours, theirs in zip(next_states[1:], clean_states[1:]):  # the LSTM's memory
        assert (ours == theirs).asnumpy().all()


def test_each_layer_has_its_own_spread():
    stack = make_stack("rnn", "tanh", "additive")
    for parameter in stack.collect_params(".*(weight|bias)").values():
        parameter.set_data(parameter.data() * 0)  # h is 0, z the noise
    for layer, gamma in zip(stack, (0.2, 0.7)):
        layer.noise.fixed_gamma.set_data(mx.nd.array([gamma]))
    _, states = train_unroll(stack, sequence(batch_size=20_000), None)
    for state, gamma in zip(states, (0.2, 0.7)):
        error = gamma / math.sqrt(2 * state.size)  # of a normal sample's standard deviation
        assert abs(state.asnumpy().std() - gamma) < ERRORS * error


# Gluon's contract.


@each_cell
@pytest.mark.parametrize("method", METHODS)
def test_wrapping_leaves_the_names_of_parameters(cell, activation, method):
    plain, stack = make_stack(cell, activation), make_stack(cell, activation, method)
    extra = set(stack.collect_params()) - set(plain.collect_params())
    assert set(plain.collect_params()) <= set(stack.collect_params())
    assert all("noise" in name for name in extra) and bool(extra) == (method in NOISY)


@each_cell
@pytest.mark.parametrize("method", METHODS)
def test_begin_state_is_what_state_info_says(cell, activation, method):
    stack = make_stack(cell, activation, method)
    states, info = stack.begin_state(batch_size=5), stack.state_info(5)
    assert [state.shape for state in states] == [entry["shape"] for entry in info]
    own = len(states) // 2
    hidden_states = 2 if cell == "lstm" else 1
    assert own == hidden_states + (3 if method == "dropout" else 0)
    for n, state in enumerate(states):
        assert state.shape[0] == 5 and (n % own >= hidden_states or not state.asnumpy().any())
    outputs, next_states = train_unroll(stack, sequence(batch_size=5), states)
    assert outputs.shape == (T, 5, HIDDEN) and [s.shape for s in next_states] == [s.shape for s in states]


@pytest.mark.parametrize("method", ["dropout", "additive"])
def test_a_wrapped_cell_refuses_to_be_used_by_itself(method):
    layer = make_stack("rnn", "tanh", method, layers=1)[0]
    states = layer.begin_state(batch_size=B)
    for _ in range(2):  # after an unroll of the wrapper as before it
        with pytest.raises(AssertionError, match="After applying modifier cells"):
            layer.base_cell.begin_state(batch_size=B)
        train_unroll(layer, sequence(), states)


def test_reset_reaches_every_layer():
    stack = make_stack("rnn", "tanh", "additive")
    train_steps(stack, sequence(), stack.begin_state(batch_size=B))
    stack.reset()
    assert [layer.base_cell._counter for layer in stack] == [-1, -1]


@pytest.mark.parametrize(
    "kind, check",
    [
        ("orthogonal", lambda block: np.abs(block @ block.T - np.eye(HIDDEN)).max() < 1e-5),
        ("identity", lambda block: (block == np.eye(HIDDEN)).all()),
        ("uniform", lambda block: 0.02 < np.abs(block).max() <= 0.1),
    ],
)
@pytest.mark.parametrize("cell, activation", [("rnn", "tanh"), ("lstm", None), ("gru", None)])
def test_recurrent_weights_start_as_told_gate_by_gate(cell, activation, kind, check):
    stacks = [make_cells(cell, HIDDEN, 1, INPUTS, activation, recurrent_init=kind, forget_bias=1.5) for _ in range(3)]
    for seed, stack in zip((1, 1, 2), stacks):
        mx.random.seed(seed)
        stack.initialize()
    first, same, other = ([p.data().asnumpy() for p in stack.collect_params().values()] for stack in stacks)
    assert all((one == two).all() for one, two in zip(first, same))
    assert any((one != two).any() for one, two in zip(first, other))
    U, W, b, c = first
    assert all(check(block) for block in np.split(W, len(W) // HIDDEN))
    assert 0.05 < np.abs(U).max() <= 0.1 and not c.any()
    assert b.tolist() == ([0] * HIDDEN + [1.5] * HIDDEN + [0] * 2 * HIDDEN if cell == "lstm" else [0] * len(b))


# Variational dropout.


def dropped_stack(cell="rnn", activation="sigmoid", layers=1, **rates):
    stack = make_cells(
        *(cell, HIDDEN, layers, INPUTS, activation), regularise=lambda cell, _: VariationalDropoutCell(cell, **rates)
    )
    stack.initialize()
    for parameter in stack.collect_params().values():
        parameter.set_data(mx.nd.random.uniform(0.1, 0.7, shape=parameter.shape))
    return stack


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("training", [False, True])
def test_mask_entries_are_0_or_the_inverse_of_the_kept_fraction(rate, training):
    with autograd.record(train_mode=training):
        mask = draw_mask(mx.nd, mx.nd.ones((300, 200)), rate).asnumpy()
    kept = mask != 0
    np.testing.assert_allclose(mask[kept], 1 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < ERRORS * math.sqrt(rate * (1 - rate) / mask.size)


@pytest.mark.parametrize("cell, activation", [("rnn", "sigmoid"), ("lstm", None)])
def test_output_mask_is_constant_in_time_and_differs_between_rows_and_sequences(cell, activation):
    stack, inputs, patterns = dropped_stack(cell, activation, outputs=0.5), sequence(batch_size=50), []
    states = stack.begin_state(batch_size=50)
    for _ in range(2):
        outputs, states = train_unroll(stack, inputs, states)
        kept = outputs.asnumpy() != 0
        assert (kept == kept[0]).all()
        assert len({row.tobytes() for row in kept[0]}) > 5  # of 32 patterns, in 50 rows
        assert states[0].asnumpy().all()  # the recurrent state is not the masked output
        patterns.append(kept[0])
        states = begin_sequence(stack, states)
    assert (patterns[0] != patterns[1]).mean() > 0.2


@pytest.mark.parametrize("kind", [Unrolled, Stepped])
def test_input_mask_is_constant_in_time_and_differs_between_rows_and_sequences(kind):
    stack, inputs, patterns = dropped_stack(inputs=0.5), sequence(batch_size=50), []
    states = stack.begin_state(batch_size=50)
    for _ in range(2):
        kept = forward_backward(kind(stack, T), inputs, states)["gradient of inputs"] != 0
        assert (kept == kept[0]).all()
        assert len({row.tobytes() for row in kept[0]}) > 3  # of 8 patterns
        patterns.append(kept[0])
        states = begin_sequence(stack, states)
    assert (patterns[0] != patterns[1]).mean() > 0.2


@pytest.mark.parametrize("kind", [Unrolled, Stepped])
def test_state_mask_acts_on_the_recurrent_product_alone(kind):
    stack = dropped_stack(states=0.5)
    states = random_states(stack, 50)
    kept = states[2].asnumpy() != 0
    found = forward_backward(kind(stack, T), sequence(batch_size=50), states)
    assert ((found["gradient of state 0"] != 0) == kept).all() and 0.3 < kept.mean() < 0.7
    assert found["outputs"].all() and found["gradient of inputs"].all()


@each_cell
def test_the_first_step_from_zero_states_is_masked_and_so_is_the_second(cell, activation):
    stack, inputs = dropped_stack(cell, activation, **RATES), sequence(batch_size=20)
    states = stack.begin_state(batch_size=20)
    masks = states[-3:]
    assert all(0.1 < (mask.asnumpy() == 0).mean() < 0.9 for mask in masks)
    outputs, _ = train_steps(stack, inputs[:2], states)
    layer = [p.data().asnumpy() for p in stack.collect_params().values()]
    weights = [layer[0], layer[2], layer[1], layer[3]]
    carried, masks = ([state.asnumpy() for state in part] for part in (states[:-3], masks))
    expected, _ = numpy_unroll(cell, activation, weights, inputs[:2].asnumpy(), carried, masks)
    assert_close([outputs], [expected])


@each_cell
def test_predict_mode_ignores_masks_and_training_leaves_nothing_behind(cell, activation):
    plain, stack, inputs = make_stack(cell, activation), make_stack(cell, activation, "dropout"), sequence()
    states = random_states(stack, B)
    own = len(states) // 2
    carried = [state for n, state in enumerate(states) if n % own < own - 3]
    expected, expected_states = plain.unroll(T, inputs, carried, "TNC", True)
    train_unroll(stack, inputs, states)
    train_steps(stack, inputs, states)
    for layer in stack:
        held = [*vars(layer).values(), *vars(layer.base_cell).values()]
        assert not any(isinstance(value, (mx.nd.NDArray, mx.sym.Symbol)) for value in held)
    outputs, next_states = stack.unroll(T, inputs, states, "TNC", True)
    assert_close([outputs], [expected])
    assert_close([s for n, s in enumerate(next_states) if n % own < own - 3], expected_states)
    assert all((next_states[n] == states[n]).asnumpy().all() for n in range(len(states)) if n % own >= own - 3)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_impossible_dropout_rate_is_refused(name, rate):
    with pytest.raises(ValueError, match=f"dropout rate of {name} is {rate}"):
        dropped_stack(**{name: rate})
