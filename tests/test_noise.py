"""Noise families and the block that applies them.

Statistical bounds are five standard errors (two-sided false alarm 6e-7 for a normal statistic), or distribution-free
where that is said; every test is seeded, so that a pass stays a pass.
"""

from __future__ import annotations

import math

import mxnet as mx
import numpy as np
import pytest
from helpers.models import make_noise
from mxnet import autograd

from noisin.graphs import traced_for
from noisin.noise import FAMILIES, MODES, Gaussian, make_family

DRAWS = 400_000
ERRORS = 5  # standard errors

# Beside each family's defaults.
PARAMETERS = {
    "bernoulli": [{"p": 0.1}, {"p": 0.9}, {"p": 0.999}],
    "gamma": [{"k": 0.1}, {"k": 9.0}, {"k": 1e4}],
    "chi_square": [{"k": 0.5}, {"k": 7.0}],
    "beta": [{"a": 0.5, "b": 0.5}, {"a": 2.0, "b": 7.0}, {"a": 1e4, "b": 1e3}],
    "poisson": [{"lam": 0.05}, {"lam": 30.0}, {"lam": 1e4}],
}
CASES = [(name, parameters) for name in FAMILIES for parameters in [{}, *PARAMETERS.get(name, [])]]
each_case = pytest.mark.parametrize(
    "name, parameters", CASES, ids=["-".join([n, *(f"{k}={v:g}" for k, v in p.items())]) for n, p in CASES]
)
each_family = pytest.mark.parametrize("name", FAMILIES)
each_mode = pytest.mark.parametrize("mode", MODES)
# How h and eps are combined is the same for every family.
each_family_and_mode = pytest.mark.parametrize(
    "name, mode",
    [*((name, "additive") for name in FAMILIES), ("gaussian", "multiplicative"), ("beta", "multiplicative")],
)
each_graph = pytest.mark.parametrize("hybrid", [None, {}, {"static_alloc": True, "static_shape": True}])

# NumPy's draw of what each family standardises, and the mean and variance that a textbook gives for it. A new family
# needs a line here.
REFERENCES = {
    "gaussian": lambda n: (np.random.standard_normal(n), 0, 1),
    "laplace": lambda n: (np.random.laplace(size=n), 0, 2),
    "logistic": lambda n: (np.random.logistic(size=n), 0, math.pi**2 / 3),
    "gumbel": lambda n: (np.random.gumbel(size=n), np.euler_gamma, math.pi**2 / 6),
    "uniform": lambda n: (np.random.uniform(size=n), 1 / 2, 1 / 12),
    "bernoulli": lambda n, p=0.5: (np.random.binomial(1, p, n), p, p * (1 - p)),
    "exponential": lambda n: (np.random.exponential(size=n), 1, 1),
    "gamma": lambda n, k=2.0: (np.random.gamma(k, size=n), k, k),
    "chi_square": lambda n, k=4.0: (np.random.chisquare(k, n), k, 2 * k),
    "beta": lambda n, a=2.0, b=2.0: (np.random.beta(a, b, n), a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)),
    "poisson": lambda n, lam=4.0: (np.random.poisson(lam, n), lam, lam),
}


def draw(name, parameters=None, size=DRAWS):
    eps = make_family(name, **(parameters or {})).sample(mx.nd, mx.nd.zeros(size))
    return eps.asnumpy().astype(np.float64)


def noisy(noise, hidden, seed=None):
    if seed is not None:
        mx.random.seed(seed)
    with autograd.train_mode():
        return noise(hidden).asnumpy()


def assert_moments(draws, mean, variance):
    """Mean and variance, each within its standard error, that of the variance from the sample's own fourth moment."""
    deviations = (draws - mean) ** 2
    assert abs(draws.mean() - mean) < ERRORS * math.sqrt(variance / draws.size)
    # Of a two-valued draw the fourth moment may leave no error at all: allow float32's rounding.
    assert abs(deviations.mean() - variance) < ERRORS * deviations.std() / math.sqrt(draws.size) + 1e-5 * variance


def cumulative(sample, at):
    return np.searchsorted(np.sort(sample), at, side="right") / sample.size


@each_case
def test_draw_has_mean_0_variance_1_and_independent_neighbours(name, parameters):
    eps = draw(name, parameters, 1_000_000)
    assert_moments(eps, 0, 1)
    assert abs(np.mean(eps[1:] * eps[:-1])) < ERRORS / math.sqrt(eps.size)


@each_case
def test_draw_has_the_distribution_of_numpys_draw(name, parameters):
    eps = draw(name, parameters)
    drawn, mean, variance = REFERENCES[name](DRAWS, **parameters)
    reference = (drawn - mean) / math.sqrt(variance)
    # Dvoretzky-Kiefer-Wolfowitz: each sample's distance from the truth passes `margin` with probability below 1e-6,
    # whatever the distribution. Rounding joins float32's draws with NumPy's at the atoms of discrete families.
    margin = math.sqrt(math.log(2 / 1e-6) / (2 * DRAWS))
    eps, reference = eps.round(4), reference.round(4)
    places = np.unique(np.concatenate([eps[:3000], reference[:3000]]))
    assert np.abs(cumulative(eps, places) - cumulative(reference, places)).max() < 2 * margin


@each_family
def test_no_draw_is_infinite_however_many_there_are(name):
    eps = make_family(name).sample(mx.nd, mx.nd.zeros(4_000_000))
    assert np.isfinite(eps.asnumpy()).all()


@each_family
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_no_draw_is_infinite_where_the_uniform_generator_returns_its_ends(name, end, monkeypatch):
    exponential = math.inf if end else 0.0  # -log(1 - end), as MXNet has it
    for generator, value in (("uniform_like", end), ("exponential_like", exponential)):
        monkeypatch.setattr(mx.nd.random, generator, lambda like, value=value, **_: mx.nd.full(like.shape, value))
    assert np.abs(draw(name, size=100)).max() < 100


def test_mxnets_exponential_draws_are_infinite_now_and_then():
    """Why the noise clips them: where MXNet's uniform draw is 1."""
    mx.random.seed(77)
    raw = mx.nd.random.exponential_like(mx.nd.zeros(4_000_000)).asnumpy()
    assert np.isinf(raw).any() and (raw[np.isfinite(raw)] < 17).all()


@each_family_and_mode
def test_noise_is_unbiased_and_gamma_is_its_deviation(name, mode):
    hidden, gamma = np.array([-1.5, 0.3, 2.0], np.float32), 0.4
    draws = noisy(make_noise(name, gamma, mode), mx.nd.array(np.tile(hidden, (100_000, 1)))).astype(np.float64)
    deviations = np.full(3, gamma) if mode == "additive" else gamma * np.abs(hidden)
    for column, h, deviation in zip(draws.T, hidden.astype(np.float64), deviations):
        assert_moments(column, h, deviation**2)


@each_family
def test_noise_comes_from_its_distribution_not_from_the_data(name):
    noise = make_noise(name)
    zeros, hidden = mx.nd.zeros((30, 40)), mx.nd.random.normal(shape=(30, 40))
    assert noisy(noise, zeros).std() > 0.3
    np.testing.assert_allclose(noisy(noise, hidden, 3) - hidden.asnumpy(), noisy(noise, zeros, 3), atol=1e-5)


@each_family_and_mode
@each_graph
@pytest.mark.parametrize("first", ["training", "predicting"])
def test_noise_is_off_exactly_in_predict_mode_and_back_on_after(name, mode, hybrid, first):
    noise, hidden = make_noise(name, mode=mode, hybrid=hybrid), mx.nd.random.normal(shape=(20, 20))
    if first == "training":
        noisy(noise, hidden)
    for _ in range(2):
        assert (noise(hidden) == hidden).asnumpy().all()
        with autograd.record(train_mode=False):
            assert (noise(hidden) == hidden).asnumpy().all()
        assert (noisy(noise, hidden) != hidden.asnumpy()).mean() > 0.5  # a Poisson draw is often its mean
    with autograd.record():
        assert (noise(hidden) != hidden).asnumpy().mean() > 0.5


@each_family_and_mode
@each_graph
def test_noise_differs_at_each_call_and_repeats_with_the_seed(name, mode, hybrid):
    noise, hidden = make_noise(name, mode=mode, hybrid=hybrid), mx.nd.ones((20, 20))
    first, second = noisy(noise, hidden, seed=5), noisy(noise, hidden)
    assert (first != second).mean() > 0.2  # discrete families repeat a value by chance
    assert (first == noisy(noise, hidden, seed=5)).all() and (second == noisy(noise, hidden)).all()


@each_family_and_mode
@each_graph
def test_hybridized_noise_equals_imperative_draw_for_draw(name, mode, hybrid):
    hidden, imperative = mx.nd.random.normal(shape=(2, 3, 4)), make_noise(name, mode=mode)
    graph = make_noise(name, mode=mode, hybrid=hybrid)
    mx.random.seed(11)
    with autograd.train_mode():
        expected = [imperative(hidden).asnumpy() for _ in range(3)]
    mx.random.seed(11)
    with autograd.train_mode(), traced_for("training"):
        found = [graph(hidden).asnumpy() for _ in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@each_mode
@each_graph
@pytest.mark.parametrize("learned", [False, True])
def test_gradients_are_those_of_the_equation(mode, hybrid, learned):
    noise, hidden = make_noise(gamma=0.5, mode=mode, hybrid=hybrid, learned=learned), mx.nd.array([[-1.0, 0.5, 2.0]])
    hidden.attach_grad()
    with autograd.record():
        loss = (noise(hidden) * mx.nd.array([[1, 2, 3]])).sum()
    loss.backward()
    h, weights = hidden.asnumpy(), np.array([[1, 2, 3]])
    scale = np.ones_like(h) if mode == "additive" else h
    # The draw is read off the gradient of h or, where that is free of noise, off the loss; never assumed.
    if mode == "additive":
        np.testing.assert_allclose(hidden.grad.asnumpy(), weights)
        deviation = loss.asscalar() - (h * weights).sum()
    else:
        relative = hidden.grad.asnumpy() / weights - 1
        assert np.abs(relative).min() > 0
        deviation = (relative * scale * weights).sum()
        np.testing.assert_allclose(loss.asscalar(), (h * weights).sum() + deviation, rtol=1e-5)
    if learned:
        # d loss / d rho = (deviation / gamma) * softplus'(rho), where softplus' = 1 - exp(-softplus).
        expected = deviation / 0.5 * (1 - math.exp(-(0.5 - 0.1)))
        np.testing.assert_allclose(noise.rho.grad().asscalar(), expected, rtol=1e-4)


@each_mode
@each_graph
@pytest.mark.parametrize("scale", [None, 2.0])
def test_noise_as_a_graph_of_its_own_passes_gradients_on(mode, hybrid, scale):
    # Where a hybridized block ends in `hidden + noise`, MXNet fails or gives a wrong gradient (apache/mxnet#20293).
    results = []
    for graph in (None, hybrid):
        noise, leaf = make_noise(mode=mode, hybrid=graph, learned=True), mx.nd.array([[-1.0, 0.5, 2.0]])
        leaf.attach_grad()
        mx.random.seed(3)
        with autograd.record(), traced_for("training"):
            loss = (noise(leaf if scale is None else leaf * scale) * mx.nd.array([[1, 2, 3]])).sum()
        loss.backward()
        results.append([loss.asscalar(), leaf.grad.asnumpy(), noise.rho.grad().asnumpy()])
    for imperative, found in zip(*results):
        assert np.abs(imperative).min() > 0
        np.testing.assert_allclose(found, imperative, rtol=1e-5)


@pytest.mark.parametrize(
    "name, parameter, value, limits",
    [
        ("bernoulli", "p", 0.0, "from 0.001 to 0.999"),
        ("bernoulli", "p", 1.0, "from 0.001 to 0.999"),
        ("gamma", "k", 0.0, "from 0.1 to 10000"),
        ("gamma", "k", -1.0, "from 0.1 to 10000"),
        ("chi_square", "k", 0.1, "from 0.2 to 20000"),
        ("chi_square", "k", math.inf, "from 0.2 to 20000"),
        ("beta", "a", 0.0, "from 0.5 to 10000"),
        ("beta", "b", -2.0, "from 0.5 to 10000"),
        ("poisson", "lam", 0.0, "from 0.01 to 10000"),
        ("poisson", "lam", math.nan, "from 0.01 to 10000"),
    ],
)
def test_parameter_out_of_range_is_refused_with_its_value_and_range(name, parameter, value, limits):
    with pytest.raises(ValueError) as refusal:
        make_family(name, **{parameter: value})
    assert all(part in str(refusal.value) for part in (parameter, name, str(value), limits))


def test_a_family_has_a_name_of_its_own():
    with pytest.raises(TypeError, match="Mine needs a `name` of its own"):
        type("Mine", (Gaussian,), {})
    assert FAMILIES["gaussian"] is Gaussian


def test_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown noise family 'cauchy'.*bernoulli.*uniform"):
        make_family("cauchy")


@pytest.mark.parametrize("name, known", [("gaussian", "none"), ("beta", "a, b")])
def test_unknown_parameter_is_refused_with_the_known_ones(name, known):
    with pytest.raises(ValueError, match=f"'{name}' has no parameter 'sigma' .it has: {known}"):
        make_family(name, sigma=1.0)


@pytest.mark.parametrize("gamma", [-0.1, math.inf, math.nan])
def test_impossible_spread_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}: it must be a finite number of at least 0"):
        make_noise(gamma=gamma)


@pytest.mark.parametrize("gamma, lower_bound", [(0.1, 0.1), (0.05, 0.1), (0.5, -0.1), (0.0, 0.0), (0.5, math.nan)])
def test_learned_spread_that_does_not_start_above_its_bound_is_refused(gamma, lower_bound):
    with pytest.raises(ValueError, match=f"starts at {gamma}, with lower bound {lower_bound}"):
        make_noise(gamma=gamma, learned=True, lower_bound=lower_bound)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'subtractive'.*additive, multiplicative"):
        make_noise(mode="subtractive")


@pytest.mark.parametrize("lower_bound", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("gamma", [0.41, 1.0, 30.0, 1000.0])
def test_learned_spread_starts_where_it_is_told(gamma, lower_bound):
    noise = make_noise(gamma=gamma, learned=True, lower_bound=lower_bound)
    assert noise.gamma == pytest.approx(gamma, rel=1e-5)
    assert noise.rho.wd_mult == 0  # weight decay would pull gamma, not a weight


@pytest.mark.parametrize("rho", [-1000.0, -20.0, -1.0, 0.0])
def test_learned_spread_never_falls_below_its_bound(rho):
    noise = make_noise(gamma=0.5, learned=True, lower_bound=0.1)
    noise.rho.set_data(mx.nd.array([rho]))
    assert noise.gamma >= np.float32(0.1)
    assert noise.gamma == pytest.approx(0.1 + math.log1p(math.exp(rho)), rel=1e-5)
    sigma = 2 * noise.gamma / math.sqrt(2 * 40_000)  # an estimated deviation's standard error, doubled for slack
    assert abs(noisy(noise, mx.nd.zeros((200, 200))).std() - noise.gamma) < ERRORS * sigma


@pytest.mark.parametrize("rho", [-30.0, -16.0, -12.5, -3.0, 0.0, 5.0, 19.0, 21.0, 100.0])
def test_learned_spread_and_its_gradient_are_those_of_softplus_however_near_the_bound(rho):
    noise = make_noise(gamma=0.5, learned=True, lower_bound=0.0)
    noise.rho.set_data(mx.nd.array([rho]))
    assert noise.gamma == pytest.approx(rho + math.log1p(math.exp(-rho)) if rho > 0 else math.log1p(math.exp(rho)))
    mx.random.seed(1)
    with mx.autograd.record():
        deviation = noise(mx.nd.zeros((50,)))
    deviation.backward(mx.nd.sign(deviation))  # d |deviation| / d rho = |deviation| softplus'(rho) / softplus(rho)
    expected = deviation.abs().sum().asscalar() / noise.gamma / (1 + math.exp(-rho))
    assert noise.rho.grad().asscalar() == pytest.approx(expected, rel=1e-5)


def test_fixed_spread_is_not_trained():
    noise = make_noise(gamma=0.25)
    assert noise.gamma == 0.25
    assert [parameter.grad_req for parameter in noise.collect_params().values()] == ["null"]
    hidden = mx.nd.ones((2, 2))
    hidden.attach_grad()
    with autograd.record():
        loss = noise(hidden).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="grad_req='null'"):
        noise.fixed_gamma.grad()


@each_graph
def test_spread_is_a_parameter_of_the_graph_not_a_constant_in_it(hybrid):
    noise, hidden = make_noise(gamma=0.5, hybrid=hybrid), mx.nd.zeros((4, 4))
    before = noisy(noise, hidden, seed=2)
    noise.fixed_gamma.set_data(mx.nd.array([1.5]))
    np.testing.assert_allclose(noisy(noise, hidden, seed=2), 3 * before, rtol=1e-6)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_multiplicative_bernoulli_is_dropout(p):
    noise = make_noise("bernoulli", math.sqrt((1 - p) / p), "multiplicative", parameters={"p": p})
    draws = noisy(noise, mx.nd.full((300, 300), 2.0))
    dropped = np.isclose(draws, 0, atol=1e-5)
    assert (dropped | np.isclose(draws, 2 / p, rtol=1e-5)).all()
    assert abs(dropped.mean() - (1 - p)) < ERRORS * math.sqrt(p * (1 - p) / draws.size)


def test_repr_says_family_mode_and_spread():
    assert repr(make_noise("gamma", parameters={"k": 3.0})) == "Noise(Gamma(k=3.0), additive, fixed gamma)"
    assert repr(make_noise(mode="multiplicative", learned=True)) == "Noise(Gaussian(), multiplicative, learned gamma)"
