"""The compiled normal draws: the generator, the method, the operator and its gradient."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from noisin.graphs import traced_for
from noisin.native import normals
from noisin.native.normals import fill_normals, normal_like

LANES = 64


def philox(counters, key):
    """Philox 4x32-10 of (n, 4) counters and a key of two words, after its authors' description."""
    words = [column.astype(np.uint64) for column in counters.T]
    low = np.uint64(0xFFFFFFFF)
    for turn in range(10):
        first, second = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        keys = [np.uint64((key[0] + turn * 0x9E3779B9) % 2**32), np.uint64((key[1] + turn * 0xBB67AE85) % 2**32)]
        high = [second >> np.uint64(32), first >> np.uint64(32)]
        words = [high[0] ^ words[1] ^ keys[0], second & low, high[1] ^ words[3] ^ keys[1], first & low]
    return np.stack(words, axis=1).astype(np.uint32)


def reference(count, key):
    """The draws in float64, by NumPy's logarithm, sine and cosine."""
    blocks = -(-count // (4 * LANES))
    counters = np.zeros((blocks * LANES, 4), np.uint32)
    counters[:, 0] = np.arange(blocks * LANES)
    words = philox(counters, (key & 0xFFFFFFFF, key >> 32)).astype(np.float64)
    draws = []
    for first, second in ((0, 1), (2, 3)):
        radius = np.sqrt(-2 * np.log((words[:, first] // 512 + 0.5) / 2**23))
        quadrant, within = words[:, second] // 2**30, words[:, second] % 2**30
        within -= 2**30 * (within >= 2**29)  # from -pi/4 to pi/4
        # Odd quadrants read the angle from the other axis.
        angle = np.where(quadrant % 2 == 0, within, 2**30 - within) * (np.pi / 2) / 2**30
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        draws += [np.where(quadrant >= 2, -x, x), np.where((quadrant == 1) | (quadrant == 2), -y, y)]
    return np.stack(draws, axis=1).reshape(blocks, LANES, 4).transpose(0, 2, 1).reshape(-1)[:count]


def drawn(count, key):
    array = np.full(count + 8, 7.0, np.float32)
    fill_normals(array[:count], key)
    assert (array[count:] == 7).all()  # nothing is written behind the end
    return array[:count]


@pytest.mark.parametrize(
    "counter, key, words",  # from the tests of Random123, the authors' own library
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_reference_is_philox(counter, key, words):
    assert list(philox(np.array([counter], np.uint32), key)[0]) == words


@pytest.mark.parametrize("count", [1, 3, 255, 256, 257, 100_000])
@pytest.mark.parametrize("key", [0, 1, 2**32, 0x299F31D0A4093822, 2**64 - 1])
def test_draws_equal_another_implementation(count, key):
    np.testing.assert_allclose(drawn(count, key), reference(count, key), rtol=2e-5, atol=2e-6)


def test_a_shorter_draw_is_the_beginning_of_a_longer_one_and_each_key_has_its_own():
    draws = {key: drawn(50_000, key) for key in (5, 6, 5 + 2**32)}
    np.testing.assert_array_equal(drawn(1000, 5), draws[5][:1000])
    for one, other in ((5, 6), (5, 5 + 2**32), (6, 5 + 2**32)):
        assert abs(np.mean(draws[one] * draws[other])) < 5 / np.sqrt(50_000)
        assert not np.isin(draws[one][:200], draws[other]).any()


def test_draws_follow_mxnets_seed_and_never_repeat():
    def draws(seed):
        mx.random.seed(seed)
        return [normal_like(mx.nd, mx.nd.zeros((3, 5))).asnumpy() for _ in range(3)]

    first, again, other = draws(1), draws(1), draws(2)
    np.testing.assert_array_equal(first, again)
    values = np.concatenate([np.ravel(first), np.ravel(other)])
    assert len(np.unique(values)) == values.size


def test_keys_have_64_random_bits(monkeypatch):
    keys = []
    monkeypatch.setattr(normals, "fill_normals", lambda array, key: keys.append(key))
    for _ in range(64):
        normal_like(mx.nd, mx.nd.zeros(1)).wait_to_read()
    bits = np.array([[key >> place & 1 for place in range(64)] for key in keys])
    assert len(set(keys)) == 64 and max(keys) < 2**64
    assert (np.abs(bits.mean(axis=0) - 0.5) < 0.4).all()  # of fair bits, one in 1e9 of 64 draws is further away
    words = [[key >> shift & 0xFFFF for key in keys] for shift in (0, 16, 32, 48)]
    assert all(one != other for place, one in enumerate(words) for other in words[:place])


def test_another_type_has_the_same_draws():
    draws = {}
    for dtype in ("float32", "float64"):
        mx.random.seed(3)
        draws[dtype] = normal_like(mx.nd, mx.nd.zeros((30, 40), dtype=dtype)).asnumpy()
        assert draws[dtype].dtype == dtype
    np.testing.assert_array_equal(draws["float32"], draws["float64"])


def poison(shape, count=40):
    """Leave NaN in memory that is free again, for whoever takes it without writing it."""
    arrays = [mx.nd.full(shape, np.nan) for _ in range(count)]
    mx.nd.waitall()
    del arrays


class Additive(mx.gluon.HybridBlock):
    def hybrid_forward(self, F, hidden):
        doubled = 2 * hidden
        with traced_for("training"):
            return doubled + normal_like(F, doubled)


@pytest.mark.parametrize("hybrid", [None, {}, {"static_alloc": True, "static_shape": True}])
def test_no_gradient_flows_through_a_draw_whatever_was_in_memory(hybrid):
    # MXNet's custom operators hand on what was in memory as their gradient, unless they write one.
    shape = (35, 32, 64)
    for _ in range(5):
        block, hidden = Additive(), mx.nd.ones(shape)
        if hybrid is not None:
            block.hybridize(**hybrid)
        hidden.attach_grad()
        poison(shape)
        with autograd.record():
            noisy = block(hidden)
        noisy.backward()
        assert (hidden.grad == 2).asnumpy().all()


def test_the_operator_alone_has_a_gradient_of_0():
    hidden, key = mx.nd.ones((35, 32, 64)), mx.nd.random.uniform(shape=(4,))
    for array in (hidden, key):
        array.attach_grad()
        array.grad[:] = np.nan
    with autograd.record():
        draws = mx.nd.Custom(key, hidden, op_type="noisin_normals")
    draws.backward()
    assert (hidden.grad == 0).asnumpy().all() and (key.grad == 0).asnumpy().all()
