"""The averaged likelihood, the estimators of perplexity, and the evaluation of a split."""

from __future__ import annotations

import math

import mxnet as mx
import numpy as np
import pytest
from helpers.machine import needs_bfloat16
from helpers.models import GRAPHS, freeze, make_language_model, random_states
from mxnet import autograd

from noisin.config import OBJECTIVES
from noisin.evaluation import Evaluator
from noisin.objective import (
    AveragedLikelihood,
    approximate_limit,
    averaged,
    bound,
    jackknife,
    leave_one_out,
    perplexity,
)

T, B, V, HIDDEN = 4, 3, 7, 5
ERRORS = 5  # standard errors of a statistical bound: one-sided false alarm 3e-7
OPTIONS = {
    "none": {"method": "none"},
    "dropout": {"method": "dropout", "dropout_embedding": 0.3},
    "noisin": {"method": "noisin"},
    "noisin*": {"method": "noisin*", "input_gamma": 0.4},
}
each_method = pytest.mark.parametrize("method", OPTIONS)
stochastic = pytest.mark.parametrize("method", [method for method in OPTIONS if method != "none"])


def random_tokens(*shape):
    return np.random.randint(0, V, shape).astype(np.int32)


def score(objective, inputs, targets, states):
    """Loss, log_p and next states in train mode, as arrays."""
    with autograd.train_mode():
        loss, log_p, states = objective(mx.nd.array(inputs), mx.nd.array(targets), states)
    return loss.asnumpy(), log_p.asnumpy(), [state.asnumpy() for state in states]


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


# The loss.


@each_method
@pytest.mark.parametrize("samples", [1, 3])
def test_loss_is_the_average_over_trajectories_of_minus_the_summed_log_likelihood(method, samples):
    model, inputs, targets = make_language_model(**OPTIONS[method]), random_tokens(T, B), random_tokens(T, B)
    states = random_states(model, samples * B)
    mx.random.seed(4)
    loss, log_p, _ = score(AveragedLikelihood(model, T, samples), inputs, targets, states)
    mx.random.seed(4)
    with autograd.train_mode():
        logits, _ = model.unroll(T, mx.nd.array(np.concatenate([inputs] * samples, axis=1)), states)
    every = log_softmax(logits.asnumpy().astype(np.float64).reshape((T, samples, B, V)))
    expected = np.take_along_axis(every, np.broadcast_to(targets[:, None, :, None], (T, samples, B, 1)), axis=3)[..., 0]
    assert log_p.shape == (T, samples, B) and loss.shape == (B,)
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, -expected.mean(axis=1).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("method", ["noisin", "noisin*", "dropout"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_pass_of_3_trajectories_equals_3_passes_given_the_same_noise(cell, method, objective):
    model, samples = make_language_model(cell=cell, **OPTIONS[method]), 3
    inputs, targets, states = random_tokens(T, B), random_tokens(T, B), random_states(model, samples * B)
    noises = ([model.input_noise] if model.input_noise else []) + model.noises
    sizes = [4] * bool(model.input_noise) + [HIDDEN] * len(model.noises)
    eps = [np.random.standard_normal((T, samples, B, size)) for size in sizes]
    trained = [p for p in model.collect_params().values() if p.grad_req != "null"]

    def run(count, states, eps, head=None):
        for noise, values in zip(noises, eps):
            freeze(noise, values)
        with autograd.record():
            likelihood = AveragedLikelihood(model, T, count, objective=objective)
            results = likelihood(mx.nd.array(inputs), mx.nd.array(targets), states)
        results[0].backward(None if head is None else mx.nd.array(head))
        loss, log_p = (result.asnumpy() for result in results[:2])
        return loss, log_p, [s.asnumpy() for s in results[2]], [p.grad().asnumpy().copy() for p in trained]

    loss, log_p, next_states, gradients = run(samples, states, eps)
    rows = [slice(s * B, (s + 1) * B) for s in range(samples)]
    alone = [run(1, [state[rows[s]] for state in states], [e[:, s] for e in eps]) for s in range(samples)]
    losses = np.array([one[0] for one in alone])
    weights = np.full((samples, B), 1 / samples)
    expected = losses.mean(axis=0)
    if objective == "log-averaged":
        shares = np.exp(-losses.astype(np.float64))
        weights, expected = shares / shares.sum(axis=0), -np.log(shares.mean(axis=0))
        assert np.abs(weights - 1 / samples).max() > 0.05  # or the mean of the logarithms would pass for it
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    weighted = [
        run(1, [state[rows[s]] for state in states], [e[:, s] for e in eps], weights[s]) for s in range(samples)
    ]
    for s, (_, expected, expected_states, _) in enumerate(alone):
        np.testing.assert_allclose(log_p[:, s], expected[:, 0], rtol=1e-4, atol=1e-5)
        for state, expected_state in zip(next_states, expected_states):
            np.testing.assert_allclose(state[rows[s]], expected_state, rtol=1e-4, atol=1e-5)
    for n, gradient in enumerate(gradients):
        expected = np.sum([one[3][n] for one in weighted], axis=0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5, err_msg=trained[n].name)


def test_the_log_of_the_averaged_likelihood_rises_with_the_trajectories():
    model, columns, found = make_language_model(method="noisin", layers=1, gamma=[1.5]), 2000, []
    inputs, targets = random_tokens(6, columns), random_tokens(6, columns)
    for samples in (1, 3, 9):
        likelihood = AveragedLikelihood(model, 6, samples, objective="log-averaged")
        loss, log_p, _ = score(likelihood, inputs, targets, likelihood.begin_state(columns))
        mean = averaged(log_p.astype(np.float64).sum(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(loss, -mean, rtol=1e-5)
        found.append(-loss)
    for fewer, more in zip(found, found[1:]):
        gain = more - fewer
        assert gain.mean() > ERRORS * gain.std() / math.sqrt(columns)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="must be averaged-log or log-averaged"):
        AveragedLikelihood(make_language_model(), T, objective="mean")


@stochastic
def test_trajectories_see_noise_of_their_own(method):
    options = {**OPTIONS[method], "dropout_states": 0.0, "dropout_outputs": 0.4, "dropout_inputs": 0.0}
    model, samples = make_language_model(hidden=30, embedding=30, layers=1, **options), 4
    objective = AveragedLikelihood(model, T, samples)
    tokens = np.repeat(random_tokens(T, 1), 50, axis=1)
    _, log_p, _ = score(objective, tokens, tokens, objective.begin_state(50))
    assert np.unique(log_p[-1].ravel()).size == samples * 50
    # Between two trajectories of independent columns: a correlation's standard error is 1/sqrt(50).
    correlations = np.corrcoef(log_p[-1]) - np.eye(samples)
    assert np.abs(correlations).max() < ERRORS / math.sqrt(50)


@each_method
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("hybrid", [graph for graph in GRAPHS if graph is not None])
def test_hybridized_equals_imperative_gradients_too(method, samples, hybrid):
    model = make_language_model(cell="lstm", **OPTIONS[method])
    inputs, targets, states = random_tokens(T, B), random_tokens(T, B), random_states(model, samples * B)
    objective, results = AveragedLikelihood(model, T, samples), []
    for graph in (None, hybrid):
        if graph is not None:
            objective.hybridize(**graph)
        mx.random.seed(6)
        with autograd.record():
            loss, log_p, next_states = objective(mx.nd.array(inputs), mx.nd.array(targets), states)
        loss.backward()
        gradients = [p.grad() for p in model.collect_params().values() if p.grad_req != "null"]
        results.append([array.asnumpy() for array in (loss, log_p, *next_states, *gradients)])
    for imperative, found in zip(*results):
        assert np.abs(imperative).max() > 0
        np.testing.assert_allclose(found, imperative, rtol=1e-4, atol=1e-5)


@needs_bfloat16
def test_bfloat16_loss_is_close_and_not_the_same():
    model = make_language_model()
    inputs, targets, states = random_tokens(T, B), random_tokens(T, B), random_states(model, B)
    exact, rounded = (
        score(AveragedLikelihood(model, T, 1, d), inputs, targets, states)[0] for d in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert (rounded != exact).any()


# The estimators.


def test_estimators_are_the_log_of_the_mean_and_the_mean_of_the_log():
    p = np.random.uniform(0.01, 1, (T, 6, B))
    np.testing.assert_allclose(bound(np.log(p)), np.log(np.prod(p, axis=1)) / 6)
    np.testing.assert_allclose(averaged(np.log(p)), np.log(np.mean(p, axis=1)))
    # Far below what exp can hold.
    np.testing.assert_allclose(averaged(np.log(p) - 2000), np.log(np.mean(p, axis=1)) - 2000)


def test_leave_one_out_is_averaged_without_each_trajectory():
    p = np.random.uniform(0.01, 1, (T, 3, B))
    expected = np.log([(p[:, 1] + p[:, 2]) / 2, (p[:, 0] + p[:, 2]) / 2, (p[:, 0] + p[:, 1]) / 2])
    np.testing.assert_allclose(leave_one_out(np.log(p)), expected)


@pytest.mark.parametrize("samples", [5, 10])
def test_the_jackknife_and_the_approximation_meet_a_limit_that_is_known(samples):
    # p = exp(spread * normal - 5) is lognormal: log E[p] = spread^2 / 2 - 5.
    spread, tokens, repetitions = 0.4, 4000, 100
    limit = spread**2 / 2 - 5
    found = {"averaged": [], "jackknife": [], "approximate": []}
    errors = []
    for _ in range(repetitions):
        log_p = spread * np.random.standard_normal((tokens, samples, 1)) - 5
        total = averaged(log_p).sum()
        value, error = jackknife(total, leave_one_out(log_p).sum(axis=(1, 2)))
        perplexities = [perplexity(score, tokens) for score in (bound(log_p).sum(), total)]
        found["averaged"].append(total / tokens)
        found["jackknife"].append(value / tokens)
        found["approximate"].append(-math.log(approximate_limit(*perplexities, samples)))
        errors.append(error / tokens)
    mean = {name: np.mean(values) - limit for name, values in found.items()}
    noise = ERRORS * np.std(found["jackknife"]) / math.sqrt(repetitions)
    assert mean["averaged"] == pytest.approx(-(math.exp(spread**2) - 1) / (2 * samples), rel=0.2)
    assert abs(mean["jackknife"]) < noise + 0.01 / samples  # of its bias, of order 1 / S^2, no more is left
    assert abs(mean["approximate"]) < 0.0025
    assert -mean["averaged"] > noise + 0.01 / samples  # without the correction the test would fail
    # Each standard error is a chi-square of samples - 1 degrees of freedom: their mean square is the variance.
    assert np.mean(np.square(errors)) == pytest.approx(np.var(found["jackknife"]), rel=0.6)


def test_a_deterministic_run_is_its_own_limit():
    assert approximate_limit(120.0, 120.0, 1) == 120.0
    assert approximate_limit(math.inf, math.inf, 10) == math.inf


def test_perplexity_is_exp_of_the_mean_and_infinite_where_that_overflows():
    assert perplexity(-12 * math.log(50), 12) == pytest.approx(50)
    assert perplexity(-1e6, 10) == math.inf
    assert perplexity(-math.inf, 10) == math.inf
    assert math.isnan(perplexity(math.nan, 10))


# A whole split.


def zero_decoder(model, bias=None):
    model.decoder_weight.set_data(mx.nd.zeros(model.decoder_weight.shape))
    model.decoder_bias.set_data(mx.nd.zeros(model.vocabulary_size) if bias is None else mx.nd.array(bias))
    return model


@pytest.mark.parametrize("method", ["none", "noisin"])
def test_padding_counts_for_nothing_even_if_it_is_impossible(method):
    model, eos = make_language_model(method=method), 0
    model.decoder_bias.data()[eos] = -math.inf  # padding is <eos>
    found = Evaluator(model, eos, 3, 5, samples=2).all(random_tokens(50) % (V - 1) + 1)
    assert all(map(math.isfinite, found.values()))
    found = Evaluator(model, eos, 3, 5, samples=2).all(np.zeros(50, np.int32))
    assert found["clean"] == found["averaged"] == math.inf
    assert method == "none" or math.isnan(found["averaged_limit"])


def test_without_a_finite_part_there_is_no_limit():
    assert all(map(math.isnan, jackknife(-1.0, np.array([-math.inf, -2.0]))))


SHAPES = pytest.mark.parametrize("batch_size, unroll", [(1, 1), (1, 35), (4, 5), (10, 7), (64, 3)])


@SHAPES
@pytest.mark.parametrize("size", [1, 2, 100])
def test_every_token_is_scored_once(batch_size, unroll, size):
    # Each word has a probability of its own, whatever came before: the total tells which words were counted.
    bias = np.random.uniform(-2, 2, V)
    model, tokens = zero_decoder(make_language_model(), bias), random_tokens(size)
    expected = math.exp(-log_softmax(bias)[tokens].mean())
    assert Evaluator(model, 0, batch_size, unroll).clean(tokens) == pytest.approx(expected, rel=1e-5)


@SHAPES
def test_a_model_without_memory_has_one_perplexity_whatever_the_batch(batch_size, unroll):
    model, eos, tokens = make_language_model(), 2, random_tokens(90)
    for parameter in model.collect_params(".*h2h_weight").values():
        parameter.set_data(parameter.data() * 0)
    previous = np.concatenate([[eos], tokens[:-1]])
    logits, _ = model(mx.nd.arange(V), model.begin_state(V))
    expected = math.exp(-log_softmax(logits.asnumpy().astype(np.float64))[previous, tokens].mean())
    assert Evaluator(model, eos, batch_size, unroll).clean(tokens) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unroll", [1, 8, 100])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_states_are_carried_through_the_split(cell, unroll):
    model, eos, tokens = make_language_model(cell=cell), 2, random_tokens(60)
    inputs = mx.nd.array(np.concatenate([[eos], tokens[:-1]])[:, None])
    logits, _ = model.unroll(60, inputs, model.begin_state(1))
    expected = math.exp(-log_softmax(logits.asnumpy().astype(np.float64))[np.arange(60), tokens].mean())
    assert Evaluator(model, eos, 1, unroll).clean(tokens) == pytest.approx(expected, rel=1e-5)


@stochastic
def test_clean_is_the_deterministic_model_whatever_mode_it_is_called_in(method):
    model, plain, tokens = make_language_model(**OPTIONS[method]), make_language_model(), random_tokens(50)
    expected = Evaluator(plain, 0, 3, 5).clean(tokens)
    evaluator = Evaluator(model, 0, 3, 5, samples=2)
    with autograd.record():
        assert evaluator.clean(tokens) == pytest.approx(expected, rel=1e-6)
    with autograd.train_mode():
        assert evaluator.clean(tokens) == pytest.approx(expected, rel=1e-6)
    found = evaluator.all(tokens)
    assert found["clean"] == pytest.approx(expected, rel=1e-6) and found["bound"] != pytest.approx(expected, rel=1e-4)
    assert evaluator.clean(tokens) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_clean_draws_no_noise(monkeypatch, family):
    model, drawn = make_language_model(method="noisin", noise=family, input_gamma=0.3), []
    sample = type(model.noises[0].family).sample
    monkeypatch.setattr(type(model.noises[0].family), "sample", lambda *args: drawn.append(1) or sample(*args))
    evaluator = Evaluator(model, 0, 3, 5, samples=2)
    evaluator.clean(random_tokens(50))
    assert not drawn
    evaluator.all(random_tokens(50))
    assert drawn


def test_a_deterministic_model_has_one_perplexity():
    found = Evaluator(make_language_model(), 0, 3, 5, samples=10).all(random_tokens(50))
    assert found["clean"] == found["bound"] == found["averaged"] == found["averaged_limit"]
    assert found["samples"] == 1 and found["averaged_limit_error"] == 0


@stochastic
@pytest.mark.parametrize("samples", [1, 3])
def test_sampled_perplexities_are_those_of_trajectories_that_keep_their_states(method, samples):
    model, eos, tokens = make_language_model(**OPTIONS[method]), 2, random_tokens(2 * T * B)
    found = Evaluator(model, eos, B, T, samples).all(tokens, seed=9)
    inputs = np.concatenate([[eos], tokens[:-1]]).reshape((B, 2 * T)).T
    targets = tokens.reshape((B, 2 * T)).T
    mx.random.seed(9)
    objective, scored = AveragedLikelihood(model, T, samples), []
    states = objective.begin_state(B)
    for part in (slice(T), slice(T, None)):
        states = model.begin_sequence(states)
        _, log_p, states = score(objective, inputs[part], targets[part], states)
        states = [mx.nd.array(state) for state in states]
        scored.append(log_p)
    log_p = np.concatenate(scored)
    expected = [math.exp(-np.log(np.exp(log_p).mean(axis=1)).mean()), math.exp(-log_p.mean())]
    assert [found["averaged"], found["bound"]] == pytest.approx(expected, rel=1e-5)
    assert found["samples"] == samples and (found["averaged"] < found["bound"] or samples == 1)
    if samples == 1:
        assert math.isnan(found["averaged_limit"]) and math.isnan(found["averaged_limit_error"])
        return
    without = [-np.log(np.exp(np.delete(log_p, s, axis=1)).mean(axis=1)).mean() for s in range(samples)]
    logs = samples * math.log(expected[0]) - (samples - 1) * np.mean(without)
    deviation = math.sqrt((samples - 1) / samples * np.sum((without - np.mean(without)) ** 2))
    limit = math.exp(logs)
    assert found["averaged_limit"] == pytest.approx(limit, rel=1e-5) and limit < found["averaged"]
    assert found["averaged_limit_error"] == pytest.approx(limit * deviation, rel=1e-2)


@stochastic
def test_evaluation_repeats_with_its_seed_and_differs_with_another(method):
    model, tokens = make_language_model(**OPTIONS[method]), random_tokens(50)
    first, again, other = (Evaluator(model, 0, 3, 5, samples=2).all(tokens, seed) for seed in (1, 1, 2))
    assert repr(first) == repr(again)
    assert first["bound"] != other["bound"] and first["clean"] == other["clean"]
