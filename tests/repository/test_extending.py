"""The examples of docs/extending.md work as they stand; tests/test_methods.py takes the method through everything."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import mxnet as mx
import numpy as np
import pytest
from helpers.processes import ROOT
from mxnet import autograd
from mxnet.gluon import rnn

from noisin import cells, noise
from noisin.cells import ProjectedCell, make_cells
from noisin.noise import Noise
from noisin.regularisers import NoisyCell, RegularisedCell

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def example(title, **scope):
    """The names that the example of a section defines."""
    (code,) = re.findall(rf"## {title}\n.*?```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, scope)
    return scope


def test_the_noise_family_is_found_by_its_name_and_standardised(monkeypatch):
    monkeypatch.setattr(noise, "FAMILIES", dict(noise.FAMILIES))
    example("Add a noise family", dataclass=dataclass, NoiseFamily=noise.NoiseFamily, math=math)
    draws = noise.make_family("triangular").sample(mx.nd, mx.nd.zeros(1_000_000)).asnumpy().astype(np.float64)
    assert abs(draws.mean()) < 5 / 1000
    assert abs(draws.var() - 1) < 5 * math.sqrt((draws**4).mean() - 1) / 1000


def test_the_cell_follows_its_equation_and_takes_noise(monkeypatch):
    monkeypatch.setattr(cells, "CELLS", dict(cells.CELLS))
    example("Add a cell", ProjectedCell=ProjectedCell, rnn=rnn, CELLS=cells.CELLS)
    noisy = make_cells("leaky", 4, 2, 3, regularise=lambda cell, layer: NoisyCell(cell, Noise("gaussian", gamma=0.5)))
    (cell,) = make_cells("leaky", 4, 1, 3)
    for block in (noisy, cell):
        block.initialize(force_reinit=True)
    x, h = mx.nd.random.normal(shape=(2, 3)), mx.nd.random.normal(shape=(2, 4))
    u, w = cell.i2h_weight.data(), cell.h2h_weight.data()
    expected = (h + mx.nd.tanh(mx.nd.dot(x, u.T) + mx.nd.dot(h, w.T))) / 2
    np.testing.assert_allclose(cell(x, [h])[0].asnumpy(), expected.asnumpy(), rtol=1e-5, atol=1e-6)
    inputs = mx.nd.random.normal(shape=(2, 5, 3))
    with autograd.train_mode():
        one, other = (noisy.unroll(5, inputs, merge_outputs=True)[0].asnumpy() for _ in range(2))
    assert one.shape == (2, 5, 4) and not np.allclose(one, other)


@pytest.mark.parametrize("kind", [rnn.LSTMCell, cells.LSTMCell])
def test_the_regulariser_acts_on_the_outputs_alone(kind):
    cell = example("Add a regulariser", RegularisedCell=RegularisedCell)["OutputDropoutCell"](kind(50, input_size=3))
    cell.initialize()
    inputs = mx.nd.random.normal(shape=(2, 5, 3))
    with autograd.train_mode():
        outputs, states = cell.unroll(5, inputs, merge_outputs=True)
    dropped = (outputs == 0).asnumpy()
    assert 0.3 < dropped.mean() < 0.7 and (dropped[:, 0] != dropped[:, 1]).any()
    assert not (states[0] == 0).asnumpy().any()
    assert not (cell.unroll(5, inputs, merge_outputs=True)[0] == 0).asnumpy().any()  # predict mode
