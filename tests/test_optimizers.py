"""The compiled updates: bit for bit MXNet's own, whatever the sizes, threads and kinds of arrays."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from noisin.optimizers import OPTIMIZERS

THEIRS = {"adam": mx.optimizer.Adam, "sgd": mx.optimizer.SGD}


def updated(kind, options, size, steps=4, dtype="float32", stype="default"):
    """Weight and states after some steps of gradients of very different sizes, with a rate that changes."""
    draws = np.random.RandomState(3)
    optimizer = kind(**options)
    updater = mx.optimizer.get_updater(optimizer)
    weight = mx.nd.array(draws.normal(size=(size,)), dtype=dtype)
    for step in range(steps):
        optimizer.rescale_grad = 1 / (32 + step)
        optimizer.set_learning_rate(options["learning_rate"] / (1 + step))
        gradient = mx.nd.array(draws.normal(size=(size,)) * 10 ** draws.uniform(-12, 6, size=(size,)), dtype=dtype)
        updater([0], [gradient.tostype(stype)], [weight])
    states = updater.states[0] if isinstance(updater.states[0], tuple) else ()
    return [array.asnumpy() for array in (weight, *states)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 1e-7, 0.1])
@pytest.mark.parametrize("size", [1, 17, 1000, 65_536, 65_537, 300_001])
def test_an_update_is_bit_for_bit_mxnets(monkeypatch, name, decay, size):
    options = {"learning_rate": 0.37, "wd": decay}
    theirs = updated(THEIRS[name], options, size)
    for operator in ("adam_update", "sgd_update", "multi_sgd_update"):
        monkeypatch.setattr(mx.optimizer.optimizer, operator, None)  # so that ours cannot be theirs
    for one, other in zip(updated(OPTIMIZERS[name], options, size), theirs):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name, options, arrays",
    [
        ("adam", {"clip_gradient": 0.1}, {}),
        ("sgd", {"clip_gradient": 0.1}, {}),
        ("sgd", {"momentum": 0.9}, {}),
        ("adam", {}, {"dtype": "float64"}),
        ("sgd", {}, {"dtype": "float16"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Accumulating with float16", "ignore:overflow encountered in cast")
def test_what_the_compiled_code_does_not_do_is_done_by_mxnet(name, options, arrays):
    options = {"learning_rate": 0.1, **options}
    for ours, theirs in zip(*(updated(kind, options, 50, **arrays) for kind in (OPTIMIZERS[name], THEIRS[name]))):
        np.testing.assert_array_equal(ours, theirs)


def test_a_matrix_is_updated_in_place_and_nothing_behind_it():
    whole = mx.nd.ones((5, 4))
    optimizer = OPTIMIZERS["sgd"](learning_rate=1.0)
    optimizer.update_multi_precision(0, whole[1:3], mx.nd.ones((2, 4)), None)  # a view, as a weight may be
    np.testing.assert_array_equal(whole.asnumpy(), np.repeat([[1.0], [0.0], [0.0], [1.0], [1.0]], 4, axis=1))


def test_an_update_waits_for_who_still_reads_the_weight():
    """MXNet computes when it pleases: a product that was asked for before an update is that of the old weight."""
    optimizer, weight = OPTIMIZERS["sgd"](learning_rate=1.0), mx.nd.ones((700, 700))
    for _ in range(3):
        product = mx.nd.dot(mx.nd.dot(mx.nd.dot(weight, weight), weight), weight)
        before = float(weight[0, 0].asscalar())
        optimizer.update_multi_precision(0, weight, mx.nd.full((700, 700), 0.25), None)
        assert float(product[0, 0].asscalar()) == pytest.approx(before**4 * 700**3, rel=1e-4)
