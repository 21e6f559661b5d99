"""The language model: embedding, stack of cells, decoder."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from helpers.gradients import assert_gradients_match_finite_differences, assert_same, forward_backward
from helpers.machine import needs_bfloat16
from helpers.models import GRAPHS, Predictions, freeze, make_language_model, random_states
from helpers.reference import numpy_unroll
from mxnet import autograd

from noisin.config import Config
from noisin.graphs import traced_for
from noisin.model import LanguageModel, initial_model
from noisin.noise import Gamma
from noisin.regularisers import NoisyCell, VariationalDropoutCell
from noisin.system.errors import UserError

T, B, V, HIDDEN, EMBEDDING = 4, 3, 7, 5, 4
OPTIONS = {
    "none": {"method": "none"},
    "dropout": {"method": "dropout", "dropout_embedding": 0.3, "dropout_output_layers": "every"},
    "noisin": {"method": "noisin", "input_gamma": 0.3},
    "noisin multiplicative": {"method": "noisin", "noise_mode": "multiplicative", "input_gamma": 0.3},
    "noisin*": {"method": "noisin*", "input_gamma": 0.3},
}
NOISY = [method for method in OPTIONS if method.startswith("noisin")]
each_method = pytest.mark.parametrize("method", OPTIONS)
each_cell = pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])


def random_tokens(length=T, batch_size=B):
    return mx.nd.array(np.random.randint(0, V, (length, batch_size)))


def freeze_all(model, length, eps=None):
    """Give the embedding and each layer their noise, drawn here or given back from an earlier call."""
    noises = ([model.input_noise] if model.input_noise else []) + model.noises
    if eps is None:
        sizes = ([EMBEDDING] if model.input_noise else []) + [HIDDEN] * len(model.noises)
        eps = [np.random.standard_normal((length, B, size)).astype(np.float32) for size in sizes]
    for noise, values in zip(noises, eps):
        freeze(noise, values)
    return eps


def train_unroll(model, tokens, states):
    with autograd.train_mode():
        logits, states = model.unroll(len(tokens), tokens, states)
    return logits.reshape((len(tokens), -1, V)), states


def values(model):
    return {name.split("_", 1)[1]: p.data().asnumpy() for name, p in model.collect_params().items()}


@each_method
@each_cell
def test_logits_equal_the_equations(method, cell):
    model, tokens = make_language_model(layers=1, cell=cell, **OPTIONS[method]), random_tokens()
    states, eps = random_states(model, B), freeze_all(model, T)
    logits, next_states = train_unroll(model, tokens, states)

    weights, ids = values(model), tokens.asnumpy().astype(int)
    embedded, carried, masks = weights["embedding_weight"][ids], [s.asnumpy() for s in states], (1, 1, 1)
    if method == "dropout":
        *carried, by_word = carried
        embedded = embedded * by_word[np.arange(B), ids][..., None]
        carried, masks = carried[:-3], carried[-3:]
    mode = "multiplicative" if "multiplicative" in method else "additive"
    if method in NOISY:
        embedded = embedded + 0.3 * eps[0] if mode == "additive" else embedded * (1 + 0.3 * eps[0])
    layer = [weights[f"l0_{name}"] for name in ("i2h_weight", "i2h_bias", "h2h_weight", "h2h_bias")]
    activation = "sigmoid" if cell == "rnn" else None
    hidden, carried = numpy_unroll(
        cell, activation, layer, embedded, carried, masks, 0.5 * eps[1] if method in NOISY else None, mode
    )
    expected = hidden @ weights["decoder_weight"].T + weights["decoder_bias"]
    np.testing.assert_allclose(logits.asnumpy(), expected, rtol=1e-4, atol=1e-5)
    for state, expected_state in zip(next_states, carried):
        np.testing.assert_allclose(state.asnumpy(), expected_state, rtol=1e-4, atol=1e-5)


@each_method
@each_cell
@pytest.mark.parametrize("hybrid", [None, GRAPHS[-1]])
def test_a_step_is_an_unroll_of_length_1(method, cell, hybrid):
    model, tokens = make_language_model(cell=cell, **OPTIONS[method]), random_tokens(length=1)
    states = random_states(model, B)
    mx.random.seed(3)
    expected, expected_states = train_unroll(model, tokens, states)
    if hybrid is not None:
        model.hybridize(**hybrid)
    mx.random.seed(3)
    with autograd.train_mode(), traced_for("training"):
        logits, next_states = model(tokens[0], states)
    assert logits.shape == (B, V)
    for found, other in zip([logits, *next_states], [expected[0], *expected_states]):
        np.testing.assert_allclose(found.asnumpy(), other.asnumpy(), rtol=1e-5, atol=1e-6)


@each_method
@each_cell
def test_carried_states_continue_the_sequence(method, cell):
    model, tokens = make_language_model(cell=cell, **OPTIONS[method]), random_tokens(length=2 * T)
    states = random_states(model, B)
    eps = freeze_all(model, 2 * T)
    expected, expected_states = train_unroll(model, tokens, states)
    parts = []
    for part in (slice(T), slice(T, None)):
        freeze_all(model, T, [values[part] for values in eps])
        logits, states = train_unroll(model, tokens[part], states)
        parts.append(logits)
    for found, other in zip([mx.nd.concat(*parts, dim=0), *states], [expected, *expected_states]):
        np.testing.assert_allclose(found.asnumpy(), other.asnumpy(), rtol=1e-4, atol=1e-5)


@each_method
@each_cell
@pytest.mark.parametrize("hybrid", [graph for graph in GRAPHS if graph is not None])
def test_hybridized_equals_imperative_gradients_too(method, cell, hybrid):
    model, tokens = make_language_model(cell=cell, **OPTIONS[method]), random_tokens()
    states, block = random_states(model, B), Predictions(model, T)
    expected = forward_backward(block, tokens, states, constants=["inputs"])
    block.hybridize(**hybrid)
    block(tokens, states)  # an evaluation traced first must not silence training
    for _ in range(2):
        assert_same(forward_backward(block, tokens, states, constants=["inputs"]), expected)
    for name, values in expected.items():
        assert np.abs(values).max() > 1e-4, f"{name} is zero"
    assert ("gradient of input_noise_rho" in expected) == (method == "noisin*")


@each_method
def test_gradients_match_finite_differences(method):
    model = make_language_model(cell="lstm", **OPTIONS[method])
    states = random_states(model, B, "float64")
    model.cast("float64")
    tokens = random_tokens()
    assert_gradients_match_finite_differences(Predictions(model, T), tokens, states, constants=["inputs"])


# A decoder tied to the embedding.

TIED = {"decoder": "tied", "embedding": HIDDEN}


@each_method
def test_a_tied_decoder_predicts_as_one_of_its_own_with_the_same_weights_and_has_the_gradient_of_both(method):
    options, tokens, found = {"cell": "lstm", **OPTIONS[method], **TIED}, random_tokens(), []
    tied, untied = make_language_model(**options), make_language_model(**{**options, "decoder": "own"})
    for name, parameter in tied.collect_params().items():
        untied.collect_params()[name].set_data(parameter.data())
    untied.decoder_weight.set_data(tied.embedding_weight.data())
    states = random_states(tied, B)
    for model in (tied, untied):
        block = Predictions(model, T)
        block.hybridize(static_alloc=True, static_shape=True)
        found.append(forward_backward(block, tokens, states, constants=["inputs"]))
    shared, apart = found
    use = "gradient of model_embedding_weight"
    apart[use] = apart[use] + apart.pop("gradient of model_decoder_weight")
    assert_same(shared, apart)


@each_method
def test_the_gradients_of_a_tied_decoder_match_finite_differences(method):
    model = make_language_model(**{**OPTIONS[method], **TIED})
    states = random_states(model, B, "float64")
    model.cast("float64")
    assert_gradients_match_finite_differences(Predictions(model, T), random_tokens(), states, constants=["inputs"])


def test_a_tied_decoder_has_a_bias_of_its_own_alone_and_needs_an_embedding_of_its_size():
    count = [
        sum(p.data().size for p in make_language_model(decoder=decoder, embedding=0).collect_params().values())
        for decoder in ("own", "tied")
    ]
    assert count[0] - count[1] == V * HIDDEN
    with pytest.raises(UserError, match="embedding is 4 and hidden is 5: a tied decoder"):
        Config(decoder="tied", embedding=4, hidden=5)
    with pytest.raises(ValueError, match="embedding is 4 and hidden 5"):
        LanguageModel(V, make_language_model().cells, embedding=4, hidden=5, tied=True)


# What each configuration builds.


@pytest.mark.parametrize("cell, gates", [("rnn", 1), ("lstm", 4), ("gru", 3)])
@each_method
def test_parameters_of_each_model(cell, gates, method):
    model = make_language_model(cell=cell, layers=3, **OPTIONS[method])
    trained = [p for p in model.collect_params().values() if p.grad_req != "null"]
    layers = sum(gates * HIDDEN * (inputs + HIDDEN + 2) for inputs in (EMBEDDING, HIDDEN, HIDDEN))
    spreads = 4 if method == "noisin*" else 0  # three layers and the embedding
    assert sum(p.data().size for p in trained) == layers + V * (EMBEDDING + HIDDEN + 1) + spreads


def test_none_builds_plain_cells():
    model = make_language_model(method="none", dropout_embedding=0.3, input_gamma=0.3)
    assert not model.stochastic and model.noises == [] and model.input_noise is None
    assert not any(isinstance(cell, (NoisyCell, VariationalDropoutCell)) for cell in model.cells)
    assert len(model.begin_state(B)) == 2


@pytest.mark.parametrize("masked, lower", [("top", 0.0), ("every", 0.9)])
def test_dropout_builds_the_masks_of_its_rates(masked, lower):
    rates = {"dropout_inputs": 0.1, "dropout_states": 0.5, "dropout_outputs": 0.9, "dropout_embedding": 0.3}
    options = {"hidden": 300, "embedding": 300, "dropout_output_layers": masked, **rates}
    model = make_language_model(300, method="dropout", **options)
    assert model.stochastic and model.noises == []
    masks = [state.asnumpy() for state in model.begin_state(B)]
    dropped = [(mask == 0).mean() for n, mask in enumerate(masks) if n not in (0, 4)]
    expected = [0.1, 0.5, lower, 0.1, 0.5, 0.9, 0.3]
    assert all(abs(d - r) <= 5 * np.sqrt(r * (1 - r) / 900) for d, r in zip(dropped, expected))


def test_standard_dropout_has_its_rate_on_each_input_and_on_the_top_layers_outputs():
    model = make_language_model(7, method="standard-dropout", standard_dropout=0.7)
    assert [cell._rates for cell in model.cells] == [{"inputs": 0.7, "outputs": rate} for rate in (0.0, 0.7)]


@pytest.mark.parametrize("method", ["noisin", "noisin*"])
def test_noisin_builds_noise_of_its_family_and_spreads(method):
    options = {"noise": "gamma", "noise_parameters": {"k": 3.0}, "noise_mode": "multiplicative", "lower_bound": 0.05}
    model = make_language_model(method=method, gamma=[0.2, 0.4], input_gamma=0.6, **options)
    noises = [*model.noises, model.input_noise]
    assert model.stochastic
    assert [noise.gamma for noise in noises] == pytest.approx([0.2, 0.4, 0.6], rel=1e-5)
    assert all(noise.family == Gamma(3.0) and noise.mode == "multiplicative" for noise in noises)
    for noise in noises if method == "noisin*" else []:
        noise.rho.set_data(mx.nd.array([-1000.0]))
        assert noise.gamma == pytest.approx(0.05)


@pytest.mark.parametrize("method", ["noisin", "noisin*"])
def test_one_gamma_serves_all_layers_and_the_embedding_has_none(method):
    model = make_language_model(method=method, gamma=[0.2])
    assert [noise.gamma for noise in model.noises] == pytest.approx([0.2, 0.2]) and model.input_noise is None


def test_weights_are_the_same_whatever_the_method():
    names = [{n for n in make_language_model(**o).collect_params() if "noise" not in n} for o in OPTIONS.values()]
    assert all(other == names[0] for other in names)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_embedding_dropout_is_refused(rate):
    with pytest.raises(ValueError, match=f"dropout rate of the embedding is {rate}"):
        LanguageModel(V, make_language_model().cells, EMBEDDING, HIDDEN, embedding_dropout=rate)


# Noise and dropout on the embedding.


def memoryless(**options):
    """A model whose logits depend on the word just read alone."""
    model = make_language_model(layers=1, **options)
    for parameter in model.collect_params(".*h2h_weight").values():
        parameter.set_data(parameter.data() * 0)
    return model


def test_word_types_keep_apart_in_masks_of_more_entries_than_float32_can_count():
    rows, size = 3, 6_000_001
    model = memoryless(method="dropout")
    model.vocabulary_size = size
    mask = mx.nd.zeros((rows, size))
    mask[:, -1] = mx.nd.array([1, 2, 3])
    with mx.autograd.train_mode():
        found = model._by_word_type(mx.nd, mask, mx.nd.array([[size - 2] * rows, [size - 1] * rows]))
    np.testing.assert_array_equal(found.asnumpy(), [[0, 0, 0], [1, 2, 3]])


def test_embedding_dropout_drops_word_types_by_row_and_sequence():
    rates = {"dropout_inputs": 0.0, "dropout_states": 0.0, "dropout_outputs": 0.0, "dropout_embedding": 0.5}
    model, rows, patterns = memoryless(method="dropout", **rates), 20, []
    # Each row reads every word twice; words that are dropped look like one another, kept ones do not.
    tokens = mx.nd.array(np.stack([np.random.permutation(np.tile(np.arange(V), 2)) for _ in range(rows)], axis=1))
    blank = memoryless(method="none")
    blank.embedding_weight.set_data(blank.embedding_weight.data() * 0)
    dropped_logits = blank(mx.nd.zeros(1), blank.begin_state(1))[0].asnumpy()
    states = model.begin_state(rows)
    for _ in range(2):
        logits, states = train_unroll(model, tokens, states)
        kept = np.abs(logits.asnumpy() - dropped_logits).max(axis=2) > 1e-4
        by_word = [[kept[tokens[:, row].asnumpy() == word, row] for word in range(V)] for row in range(rows)]
        assert all(len(uses) == 2 and uses[0] == uses[1] for row in by_word for uses in row)
        patterns.append(np.array(by_word)[:, :, 0])
        assert len({row.tobytes() for row in patterns[-1]}) > rows / 2
        states = model.begin_sequence(states)
    assert (patterns[0] != patterns[1]).mean() > 0.2
    assert (train_unroll_off(model, tokens, states) != dropped_logits).all(axis=2).all()


def train_unroll_off(model, tokens, states):
    return model.unroll(len(tokens), tokens, states)[0].reshape((len(tokens), -1, V)).asnumpy()


@pytest.mark.parametrize("method", NOISY)
def test_embedding_noise_differs_between_uses_of_a_word_and_is_off_in_prediction(method):
    model = memoryless(**{**OPTIONS[method], "gamma": [0.2]})
    for noise in model.noises:  # leave the embedding's noise alone
        freeze(noise, np.zeros((2 * T, B, HIDDEN)))
    tokens, states = mx.nd.full((T, B), 2), model.begin_state(B)
    noisy = train_unroll(model, tokens, states)[0].asnumpy()
    assert np.unique(noisy[:, :, 0]).size == T * B
    clean = memoryless(method="none")
    expected = clean.unroll(T, tokens, clean.begin_state(B))[0].asnumpy()
    np.testing.assert_array_equal(model.unroll(T, tokens, states)[0].asnumpy(), expected)


# States.


@each_method
def test_begin_sequence_keeps_values_cuts_gradients_and_renews_masks(method):
    model, tokens = make_language_model(cell="lstm", **OPTIONS[method]), random_tokens()
    states, own = random_states(model, B), 5 if method == "dropout" else 2
    for state in states:
        state.attach_grad()
    with autograd.record():
        _, ended = model.unroll(T, tokens, states)
        begun = model.begin_sequence(ended)
        # With a path to the states that counts for nothing: without one MXNet refuses.
        loss = model.unroll(T, tokens, begun)[0].sum() + sum(state.sum() for state in states) * 0
    loss.backward()
    assert all(not state.grad.asnumpy().any() for state in states)
    for n, (old, new) in enumerate(zip(ended, begun)):
        is_mask = method == "dropout" and (n == 10 or n % own >= 2)
        assert old.shape == new.shape and (old == new).asnumpy().all() != is_mask


@each_method
def test_begin_state_is_zero_but_for_masks(method):
    model = make_language_model(cell="lstm", **OPTIONS[method])
    states = model.begin_state(B)
    zero = [not state.asnumpy().any() for state in states]
    assert zero == ([True] * 2 + [False] * 3) * 2 + [False] if method == "dropout" else [True] * 4


# The decoder in bfloat16.


@needs_bfloat16
@each_method
def test_bfloat16_decoder_agrees_with_float32(method):
    model, tokens = make_language_model(**OPTIONS[method]), random_tokens()
    states, results = random_states(model, B), []
    weights = mx.nd.random.uniform(-1, 1, shape=(T * B, V))
    for dtype in ("float32", "bfloat16"):
        mx.random.seed(5)
        with autograd.record():
            logits, next_states = model.unroll(T, tokens, states, dtype)
            loss = (logits * weights).sum()
        loss.backward()
        assert logits.dtype == np.float32
        arrays = {"logits": logits, "state": next_states[0]}
        arrays.update({n: p.grad() for n, p in model.collect_params().items() if p.grad_req != "null"})
        results.append({name: array.asnumpy() for name, array in arrays.items()})
    exact, rounded = results
    assert (exact["state"] == rounded["state"]).all()
    assert (exact["logits"] != rounded["logits"]).any()  # it was rounded
    for name, values in exact.items():
        # bfloat16 keeps 8 bits: one rounding is at most 2^-9, and a few of them meet in each number. A spread's
        # gradient sums over all units and steps, and much of it cancels.
        tolerance = (0.1 if "noise" in name else 0.02) * np.abs(values).max()
        np.testing.assert_allclose(rounded[name], values, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind, scale", [("identity", 0.01), ("uniform", 0.02)])
def test_the_weights_start_as_the_configuration_says(kind, scale):
    config = Config(cell="lstm", hidden=4, recurrent_init=kind, init_scale=scale, forget_bias=1.5)
    weights = {
        name: value.data().asnumpy() for name, value in initial_model(config, V, mx.cpu()).collect_params().items()
    }
    gates = weights["cells_l0_h2h_weight"].reshape(4, 4, 4)
    if kind == "identity":
        assert all(np.array_equal(gate, np.eye(4)) for gate in gates)
    else:
        assert 0 < np.abs(gates).max() <= scale
    for name in ("model_embedding_weight", "model_decoder_weight", "cells_l0_i2h_weight"):
        assert 0.5 * scale < np.abs(weights[name]).max() <= scale
    biases = (weights["cells_l0_i2h_bias"] + weights["cells_l0_h2h_bias"]).reshape(4, 4)
    assert sorted(set(biases.ravel())) == [0.0, 1.5] and np.ptp(biases, axis=1).max() == 0
