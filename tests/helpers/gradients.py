"""Gradients of a whole block, and two ways to check them."""

from __future__ import annotations

import mxnet as mx
import numpy as np
from mxnet import autograd


def named_inputs(inputs, states, constants):
    """What a block reads, by name, with gradients attached; without what `constants` names (tokens have none)."""
    arrays = {"inputs": inputs, **{f"state {n}": state for n, state in enumerate(states)}}
    arrays = {name: array for name, array in arrays.items() if name not in constants}
    for array in arrays.values():
        array.attach_grad()
    return arrays


def forward_backward(block, inputs, states, seed=7, constants=()):
    """Outputs, next states, and the gradients of a weighted sum of them all, by name."""
    arrays = named_inputs(inputs, states, constants)
    mx.random.seed(seed)
    with autograd.record():
        outputs, next_states = block(inputs, states)
        loss = weighted_sum([outputs, *next_states])
    loss.backward()
    found = {"outputs": outputs, **{f"state {n}": state for n, state in enumerate(next_states)}}
    found.update({f"gradient of {name}": array.grad for name, array in arrays.items()})
    for name, parameter in block.collect_params().items():
        if parameter.grad_req != "null":
            found[f"gradient of {name}"] = parameter.grad()
    return {name: array.asnumpy() for name, array in found.items()}


def weighted_sum(arrays):
    """A sum in which every element has a weight of its own."""
    total = 0
    for n, array in enumerate(arrays):
        weights = np.cos(1.7 * np.arange(array.size) + n).reshape(array.shape)
        total = total + (array * mx.nd.array(weights, dtype=array.dtype)).sum()
    return total


def assert_close(found, expected):
    """Lists of arrays, MXNet's or NumPy's, agree to float32's rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        one, other = (array if isinstance(array, np.ndarray) else array.asnumpy() for array in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def assert_same(found, expected, rtol=1e-4, atol=1e-5):
    """Two results of `forward_backward` agree, entry by entry."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=atol, err_msg=name)


def assert_gradients_match_finite_differences(block, inputs, states, step=1e-5, seed=7, constants=()):
    """In float64, with the noise frozen by reseeding, along a random direction of every array that has a gradient.

    A direction with a component along each element sees an error in any of them; central differences of this step are
    right to about 1e-9. `constants` as in `named_inputs`.
    """
    arrays = named_inputs(inputs, states, constants)
    arrays.update({n: p.data() for n, p in block.collect_params().items() if p.grad_req != "null"})

    def loss():
        mx.random.seed(seed)
        with autograd.record():
            outputs, next_states = block(inputs, states)
            return weighted_sum([outputs, *next_states])

    loss().backward()
    gradients = {name: array.grad.asnumpy().copy() for name, array in arrays.items()}
    for name, array in arrays.items():
        assert array.dtype == np.float64, name
        centre, direction = array.asnumpy().copy(), np.random.standard_normal(array.shape)
        array[:] = centre + step * direction
        above = loss().asscalar()
        array[:] = centre - step * direction
        below = loss().asscalar()
        array[:] = centre
        expected = (above - below) / (2 * step)
        found = (gradients[name] * direction).sum()
        assert abs(found - expected) < 1e-6 * (1 + abs(expected)), f"{name}: {found} is not {expected}"
        assert np.abs(gradients[name]).max() > 0, f"{name} has no gradient"
