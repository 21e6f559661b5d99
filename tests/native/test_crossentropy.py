"""The compiled softmax and cross-entropy, and the likelihood whose gradient is made with it."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from helpers.machine import needs_bfloat16
from helpers.models import make_language_model, random_states

from noisin.graphs import BFLOAT16
from noisin.native import compiled, crossentropy
from noisin.objective import AveragedLikelihood, FusedLikelihood

T, B, V = 4, 3, 7


def cross_entropy(logits, bias, targets, weight=1.0):
    """On NumPy's arrays; bfloat16 as uint16. Returns log p and the gradients of logits and bias."""
    product = mx.nd.array(logits, dtype=np.float32)
    if logits.dtype == np.uint16:
        product = mx.nd.amp_cast(mx.nd.array(from_bfloat16(logits)), dtype=BFLOAT16)  # exact
    found = crossentropy.cross_entropy(product, mx.nd.array(bias), mx.nd.array(targets), weight)
    log_p, bias_gradient = (array.asnumpy() for array in found)
    return log_p, compiled.memory(product).copy(), bias_gradient


def to_bfloat16(values):
    """The nearest bfloat16 as uint16, by another way than the compiled code's: MXNet's conversion."""
    array = mx.nd.amp_cast(mx.nd.array(values), dtype=BFLOAT16)
    return compiled.memory(array).copy()


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def reference(logits, targets, weight):
    """Log p and gradient in float64."""
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(targets))
    return log_p[rows, targets], weight * (np.exp(log_p) - (np.arange(logits.shape[1]) == targets[:, None]))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows, size", [(1, 1), (3, 7), (4, 1000), (33, 129)])
@pytest.mark.parametrize("spread", [0.1, 3.0, 300.0])
def test_float32_equals_float64_arithmetic(monkeypatch, threads, rows, size, spread):
    monkeypatch.setattr(crossentropy, "threads", lambda: threads)
    logits = np.random.normal(0, spread, (rows, size)).astype(np.float32)
    bias, targets = np.random.normal(0, spread, size).astype(np.float32), np.random.randint(0, size, rows)
    expected_log_p, expected = reference((logits + bias).astype(np.float32), targets, 0.25)
    log_p, gradient, bias_gradient = cross_entropy(logits, bias, targets, 0.25)
    np.testing.assert_allclose(log_p, expected_log_p, rtol=1e-6, atol=3e-6)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-8)
    np.testing.assert_allclose(bias_gradient, expected.sum(axis=0), rtol=1e-4, atol=1e-7)


def test_bfloat16_differs_by_its_rounding_alone():
    bits = to_bfloat16(np.random.normal(0, 2, (40, 300)))
    bias, targets = np.random.normal(0, 1, 300).astype(np.float32), np.random.randint(0, 300, 40)
    expected_log_p, expected, expected_bias_gradient = cross_entropy(from_bfloat16(bits), bias, targets)
    log_p, gradient, bias_gradient = cross_entropy(bits, bias, targets)
    np.testing.assert_array_equal(log_p, expected_log_p)
    np.testing.assert_array_equal(bias_gradient, expected_bias_gradient)  # summed before it is rounded
    np.testing.assert_array_equal(gradient, to_bfloat16(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_makes_its_row_nan_and_no_other(dtype, poison):
    logits = np.random.normal(size=(3, 200)).astype(np.float32)
    logits[1, 50] = poison
    if dtype == "bfloat16":
        logits = to_bfloat16(logits)
    log_p, gradient, bias_gradient = cross_entropy(logits, np.zeros(200, np.float32), np.array([1, 2, 3]))
    if dtype == "bfloat16":
        gradient = from_bfloat16(gradient)
    assert np.isnan(gradient[1]).all() and np.isnan(bias_gradient).all() and np.isnan(log_p[1])
    assert np.isfinite(gradient[[0, 2]]).all() and np.isfinite(log_p[[0, 2]]).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_scaled_in_place_and_summed_before_rounding(monkeypatch, threads, dtype):
    monkeypatch.setattr(crossentropy, "threads", lambda: threads)
    values, weights = np.random.normal(0, 1, (33, 129)).astype(np.float32), np.random.uniform(0, 1, 33)
    product = mx.nd.array(values)
    if dtype == "bfloat16":
        values = from_bfloat16(to_bfloat16(values))
        product = mx.nd.amp_cast(product, dtype=BFLOAT16)
    sums = crossentropy.scale_rows(product, mx.nd.array(weights)).asnumpy()
    scaled = compiled.memory(product)
    expected = values * weights.astype(np.float32)[:, None]
    np.testing.assert_array_equal(scaled, expected if dtype == "float32" else to_bfloat16(expected))
    np.testing.assert_allclose(sums, expected.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused():
    logits, bias, targets = np.zeros((3, 5), np.float32), np.zeros(5, np.float32), np.array([0, 1, 4])
    cross_entropy(logits, bias, targets)
    for wrong in (np.array([0, 1, 5]), np.array([0, -1, 4]), np.array([0, np.nan, 4])):
        with pytest.raises(ValueError, match="from 0 to 4"):
            cross_entropy(logits, bias, wrong)
    for dtypes in (("float64", "float32"), ("float32", "float64"), ("float16", "float32")):
        arrays = [mx.nd.array(array, dtype=dtype) for array, dtype in zip((logits, bias), dtypes)]
        with pytest.raises(ValueError, match="float32"):
            crossentropy.cross_entropy(*arrays, mx.nd.array(targets))
    for wrong in ((logits, bias[:4], targets), (logits, bias, targets[:2]), (logits[:2], bias, targets)):
        with pytest.raises(ValueError, match="do not fit"):
            cross_entropy(*wrong)
    product = mx.nd.array(logits)
    for weights in (mx.nd.ones(2), mx.nd.ones(3, dtype="float64")):
        with pytest.raises(ValueError, match="do not fit"):
            crossentropy.scale_rows(product, weights)
    with pytest.raises(ValueError, match="do not fit"):
        crossentropy.scale_rows(mx.nd.array(logits, dtype="float16"), mx.nd.ones(3))


@pytest.mark.parametrize("cell, layers", [("rnn", 2), ("lstm", 1), ("gru", 1)])
@pytest.mark.parametrize("method", ["none", "dropout", "noisin", "noisin*"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("hybrid", [False, True])
def test_loss_states_and_gradients_are_those_of_the_plain_likelihood(cell, layers, method, samples, hybrid):
    _compare(samples, hybrid, "float32", 1e-5, cell=cell, layers=layers, method=method, dropout_embedding=0.3)


@pytest.mark.parametrize("method", ["none", "dropout", "noisin", "noisin*"])
def test_with_a_decoder_that_is_tied_to_the_embedding(method):
    _compare(3, True, "float32", 1e-5, cell="lstm", method=method, dropout_embedding=0.3, embedding=5, decoder="tied")


@pytest.mark.parametrize("method", ["dropout", "noisin*"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_log_of_the_averaged_likelihood_too(method, samples):
    _compare(samples, True, "float32", 1e-5, "log-averaged", cell="lstm", method=method, gamma=[2.0])


@needs_bfloat16
@pytest.mark.parametrize(
    "method, objective", [*((m, "averaged-log") for m in ("none", "noisin*")), ("noisin*", "log-averaged")]
)
def test_in_bfloat16_too(method, objective):
    _compare(3, True, "bfloat16", 2e-2, objective, cell="rnn", method=method)


def _compare(samples, hybrid, dtype, tolerance, objective="averaged-log", **options):
    inputs, targets = (mx.nd.array(np.random.randint(0, V, (T, B))) for _ in range(2))
    model = make_language_model(V, **options)
    states, found, draws = random_states(model, samples * B), [], np.random.randint(2**31)
    for kind in (AveragedLikelihood, FusedLikelihood):
        likelihood = kind(model, T, samples, dtype, objective)
        if hybrid:
            likelihood.hybridize(static_alloc=True, static_shape=True)
        for _ in range(2):  # the second time over what the first left in the same memory
            mx.random.seed(draws)
            loss, after = likelihood.backward(inputs, targets, states)
        gradients = {name: p.grad().asnumpy() for name, p in model.collect_params().items() if p.grad_req != "null"}
        found.append((loss, [state.asnumpy() for state in after], gradients))
    (loss, after, gradients), (fused_loss, fused_after, fused_gradients) = found
    assert fused_loss == pytest.approx(loss, rel=tolerance)
    for state, fused in zip(after, fused_after):
        np.testing.assert_array_equal(fused, state)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, f"{name} has no gradient to compare"
        # A learned spread's gradient is one sum, which may nearly cancel: its terms are about as large as the others.
        size = largest if gradient.size == 1 else np.abs(gradient).max()
        close = {"rtol": tolerance, "atol": tolerance * size}
        np.testing.assert_allclose(fused_gradients[name], gradient, err_msg=name, **close)
