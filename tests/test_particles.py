"""The particle filter against exact likelihoods: Kalman's filter, the forward algorithm, a network enumerated."""

from __future__ import annotations

import itertools
import math

import mxnet as mx
import numpy as np
import pytest
from helpers.models import make_language_model, set_weights
from helpers.reference import numpy_unroll

from noisin.evaluation import Evaluator
from noisin.model import evaluation_seed
from noisin.particles import ParticleFilter

# A linear Gaussian model z_t = a z_{t-1} + N(0, q), x_t = z_t + N(0, r), and a chain of two states.
A, Q, R = 0.9, 0.5, 0.2
STAY, EMIT = 0.8, np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])


def log_normal(x, mean, variance):
    return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)


def kalman(xs):
    mean, variance, total = 0.0, 0.0, 0.0
    for x in xs:
        mean, variance = A * mean, A * A * variance + Q
        total += log_normal(x, mean, variance + R)
        gain = variance / (variance + R)
        mean, variance = mean + gain * (x - mean), (1 - gain) * variance
    return total


def forward(xs):
    belief, total = np.array([0.5, 0.5]), 0.0
    for x in xs:
        joint = (belief @ np.array([[STAY, 1 - STAY], [1 - STAY, STAY]])) * EMIT[:, x]
        total += math.log(joint.sum())
        belief = joint / joint.sum()
    return total


def filtered(xs, move, log_p, start, particles, repetitions):
    """Log-likelihoods of so many independent filters of one sequence, its states moved and weighed by functions."""
    found = ParticleFilter(particles, repetitions, np.random.RandomState(3))
    states, total = start((particles, repetitions)), np.zeros(repetitions)
    for x in xs:
        states = move(states)
        total += found.weigh(log_p(x, states))
        ancestors = found.resample()
        if ancestors is not None:
            states = np.take_along_axis(states, ancestors, axis=0)
    return total


def of_gaussian(xs, particles, repetitions):
    return filtered(
        xs,
        lambda z: A * z + math.sqrt(Q) * np.random.standard_normal(z.shape),
        lambda x, z: log_normal(x, z, R),
        np.zeros,
        *(particles, repetitions),
    )


def of_chain(xs, particles, repetitions):
    return filtered(
        xs,
        lambda z: np.where(np.random.uniform(size=z.shape) < STAY, z, 1 - z),
        lambda x, z: np.log(EMIT[z, x]),
        lambda shape: np.random.randint(0, 2, shape),
        *(particles, repetitions),
    )


def assert_unbiased(log_estimates, exact):
    """The mean of the estimates is the likelihood, up to four standard errors."""
    ratios = np.exp(log_estimates - exact)
    error = ratios.std() / math.sqrt(len(ratios))
    assert error < 0.05 and abs(ratios.mean() - 1) < 4 * error


@pytest.mark.parametrize("particles", [4, 30])
def test_a_linear_gaussian_model_has_the_likelihood_of_kalmans_filter(particles):
    xs = [0.3, -0.8, 1.1, 0.9]
    assert_unbiased(of_gaussian(xs, particles, 20_000), kalman(xs))


@pytest.mark.parametrize("particles", [4, 30])
def test_a_chain_has_the_likelihood_of_the_forward_algorithm(particles):
    xs = [0, 2, 2, 0, 1, 2]
    assert_unbiased(of_chain(xs, particles, 20_000), forward(xs))


def test_the_log_likelihood_rises_with_the_particles_to_the_exact_one():
    xs = [0.3, -0.8, 1.1, 0.9, 2.0, 0.1]
    means, errors = [], []
    for particles in (1, 4, 16, 64, 1024):
        found = of_gaussian(xs, particles, 1000)
        means.append(found.mean())
        errors.append(found.std() / math.sqrt(len(found)))
    assert all(later - earlier > 4 * error for earlier, later, error in zip(means, means[1:], errors))
    assert 0 < kalman(xs) - means[-1] < 0.05


def test_resampling_is_systematic_and_only_where_particles_are_depleted():
    count, columns = 50, 400
    particles = ParticleFilter(count, columns, np.random.RandomState(1))
    spread = np.linspace(0, 4, columns)  # from equal weights to a few particles
    log_p = spread * np.random.RandomState(2).standard_normal((count, columns))
    weights = np.exp(log_p) / np.exp(log_p).sum(axis=0)
    particles.weigh(log_p)
    np.testing.assert_allclose(particles.effective, 1 / (weights**2).sum(axis=0), rtol=1e-9)
    depleted = particles.effective < count / 2
    assert 50 < depleted.sum() < 350
    ancestors = particles.resample()
    assert (ancestors[:, ~depleted] == np.arange(count)[:, None]).all()
    copies = np.stack([np.bincount(column, minlength=count) for column in ancestors.T], axis=1)
    assert (np.abs(copies - count * weights)[:, depleted] < 1).all()  # no other scheme is as even
    np.testing.assert_allclose(particles.effective[depleted], count)
    assert particles.effective[~depleted].min() < count - 1
    assert particles.resample() is None


def test_what_no_particle_can_explain_has_no_likelihood_and_no_weight_is_lost():
    particles = ParticleFilter(3, 2, np.random.RandomState(1))
    impossible = np.array([[0.0, -math.inf]] * 3)
    np.testing.assert_array_equal(particles.weigh(impossible), [0, -math.inf])
    np.testing.assert_allclose(particles.effective, 3)


@pytest.mark.parametrize("particles", [0, -1])
def test_there_is_at_least_one_particle(particles):
    with pytest.raises(ValueError, match="it must be at least 1"):
        ParticleFilter(particles, 1, np.random.RandomState(1))


WORDS, UNITS = [2, 1, 2, 0], 2  # the last is <eos>, from which a repetition of the text begins


def enumerated_model(cell):
    """A model with noise of two values in so few units that every sequence of them can be tried."""
    options = {"layers": 1, "hidden": UNITS, "embedding": 2, "method": "noisin", "noise": "bernoulli", "gamma": [0.9]}
    model = make_language_model(3, cell=cell, activation="tanh" if cell == "rnn" else None, **options)
    set_weights(model, scale=4.0)  # words that differ much between trajectories
    return model


def exact_log_p(model, cell, words):
    """Log p of the words after <eos>, from the equations: the mean over every sequence of signs."""
    prefix = model.prefix
    weights = {name[len(prefix) :]: p.data().asnumpy().astype(float) for name, p in model.collect_params().items()}
    weights = {name.replace("cells_", ""): value for name, value in weights.items()}
    layer = [weights[f"l0_{name}"] for name in ("i2h_weight", "i2h_bias", "h2h_weight", "h2h_bias")]
    signs = np.array(list(itertools.product((-1, 1), repeat=len(words) * UNITS))).reshape(-1, len(words), UNITS)
    inputs = np.repeat(weights["embedding_weight"][[0, *words[:-1]]][:, None], len(signs), axis=1)
    start = [np.zeros((len(signs), UNITS))] * (2 if cell == "lstm" else 1)
    activation = "tanh" if cell == "rnn" else None
    hidden, _ = numpy_unroll(cell, activation, layer, inputs, start, deviations=0.9 * signs.swapaxes(0, 1))
    logits = hidden @ weights["decoder_weight"].T + weights["decoder_bias"]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    of_each = sum(log_p[step, :, word] for step, word in enumerate(words))
    return math.log(np.exp(of_each).mean()), of_each.mean()


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_a_networks_marginal_likelihood_is_that_of_every_sequence_of_noise(cell):
    model = enumerated_model(cell)
    exact, bound = exact_log_p(model, cell, WORDS)
    assert exact - bound > 0.5  # what one particle would be short of
    columns = 3000
    evaluator = Evaluator(model, 0, columns, len(WORDS))
    kept = []
    weigh = ParticleFilter.weigh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParticleFilter, "weigh", lambda self, log_p: kept.append(weigh(self, log_p)) or kept[-1])
        found = evaluator.marginal(np.tile(WORDS, columns), particles=4, repetitions=1)
    assert_unbiased(np.sum(kept, axis=0), exact)
    assert 1 < found["effective_particles"] < 3.5
    many = evaluator.marginal(np.tile(WORDS, columns), particles=64, repetitions=2)
    assert many["marginal"] == pytest.approx(math.exp(-exact / len(WORDS)), rel=0.01)
    assert many["marginal"] < found["marginal"] < math.exp(-bound / len(WORDS))
    assert 0 < many["marginal_deviation"] < 0.01 * many["marginal"]


@pytest.mark.parametrize("method", ["noisin", "dropout", "dropout+noisin"])
def test_one_particle_is_the_bound(method):
    model = make_language_model(method=method, layers=1)
    evaluator = Evaluator(model, 0, 3, 1, samples=1)
    tokens = np.random.RandomState(1).randint(0, 7, 40)
    found = evaluator.marginal(tokens, particles=1, repetitions=1, seed=5)
    assert found["marginal"] == pytest.approx(evaluator.all(tokens, seed=5)["bound"], rel=1e-6)
    assert found["effective_particles"] == pytest.approx(1) and math.isnan(found["marginal_deviation"])


def test_a_deterministic_model_needs_no_particles():
    evaluator = Evaluator(make_language_model(method="none"), 0, 3, 5)
    tokens = np.random.RandomState(1).randint(0, 7, 40)
    found = evaluator.marginal(tokens, particles=100)
    assert found["marginal"] == pytest.approx(evaluator.clean(tokens), rel=1e-6)
    assert (found["particles"], found["repetitions"]) == (1, 1)


def test_repetitions_and_seeds_draw_anew():
    model = make_language_model(method="noisin", layers=1)
    evaluator = Evaluator(model, 0, 3, 5)
    tokens = np.random.RandomState(1).randint(0, 7, 40)
    first, again, other = (evaluator.marginal(tokens, 4, 2, seed)["marginal"] for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(ValueError, match="repetitions is 0"):
        evaluator.marginal(tokens, 4, 0)


def test_no_two_filters_share_a_stream_of_noise(monkeypatch):
    seeds, seed_mxnet = [], mx.random.seed
    monkeypatch.setattr(mx.random, "seed", lambda number: seeds.append(number) or seed_mxnet(number))
    evaluator = Evaluator(make_language_model(5, method="noisin", gamma=[0.5], hidden=3), 1, 2, 3)
    for number in range(4):
        evaluator.marginal(np.arange(5), 2, 4, evaluation_seed(1, number))
    # MXNet seeds 1,024 generators from 127 times the seed on: closer than this two streams share some.
    assert len(seeds) == 16 and min(np.diff(sorted(seeds))) > 1024 / 127
