"""The examples of docs/extending.md work as they stand; tests/test_methods.py takes the method through everything."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import mxnet as mx
import numpy as np
import pytest
from helpers.processes import ROOT
from mxnet import autograd
from mxnet.gluon import rnn

from experiments.__main__ import main as experiment_main
from experiments.catalogue import EXPERIMENTS, Case, Experiment
from experiments.report import claims, tables
from experiments.report.page import Section
from experiments.report.runs import load_runs, number, runs_of
from noisin import cells, noise
from noisin.cells import ProjectedCell, make_cells
from noisin.commands.main import main
from noisin.config import Config
from noisin.data.corpus import load_corpus
from noisin.data.published import PUBLISHED, PublishedCorpus, Source
from noisin.noise import Noise
from noisin.optimizers import OPTIMIZERS
from noisin.regularisers import NoisyCell, RegularisedCell
from noisin.training import train

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


def test_the_optimizer_trains_and_its_state_is_kept(monkeypatch, tmp_path):
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", None)
    example("Add an optimizer", mx=mx, OPTIMIZERS=OPTIMIZERS)
    chosen = Config.__dataclass_fields__["optimizer"]
    monkeypatch.setattr(chosen, "metadata", {**chosen.metadata, "choices": tuple(OPTIMIZERS)})
    config = Config(optimizer="rmsprop", learning_rate=0.001, hidden=4, batch_size=100)
    corpus, quiet = load_corpus("synthetic"), {"report": lambda line: None, "progress": False}
    whole = train(replace(config, epochs=2), tmp_path / "whole", corpus, **quiet)
    train(replace(config, epochs=1), tmp_path / "parts", corpus, **quiet)
    parts = train(replace(config, epochs=2), tmp_path / "parts", corpus, **quiet)
    assert parts["epochs"][1]["valid_ppl"] == whole["epochs"][1]["valid_ppl"] < whole["epochs"][0]["valid_ppl"]


def test_the_corpus_is_found_and_checked(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PUBLISHED, "wugs", None)
    example("Add a corpus", PUBLISHED=PUBLISHED, PublishedCorpus=PublishedCorpus, Source=Source)
    monkeypatch.setenv("NOISIN_DATA", str(tmp_path))
    (tmp_path / "wugs").mkdir()
    texts = {"train": "dax blick\nzorp dax blick\n", "valid": "blick dax\n", "test": "blick dax\n"}
    for split, text in texts.items():
        (tmp_path / "wugs" / f"{split}.txt").write_text(text, encoding="utf-8")
    assert main(["data", "wugs"]) == 0
    assert "| tokens, train | 7" in re.sub(" +", " ", capsys.readouterr().out)
    (tmp_path / "wugs" / "test.txt").write_text("blick zap\n", encoding="utf-8")
    assert main(["data", "wugs"]) == 2
    assert re.search("test.txt.*wrong checksum", capsys.readouterr().err)


def test_the_column_is_in_every_table_and_on_the_page(monkeypatch):
    monkeypatch.setattr(tables, "COLUMNS", dict(tables.COLUMNS))
    example("Add a column to the tables", COLUMNS=tables.COLUMNS, number=number)
    runs = load_runs()
    for experiment in EXPERIMENTS.values():
        found = tables.lines(experiment, runs_of(experiment, runs))
        epochs = [line.run.epochs if line.run else [] for line in found]
        shown = tables.frame(experiment, found)["last epoch's training"]
        assert list(shown) == [number(of_run[-1]["train_ppl"]) if of_run else "-" for of_run in epochs]
        section = Section(experiment, found, {}, [])
        assert section.headings[-1] == "last epoch's training"
        on_page = [row[-1].pieces[0] for _, rows in section.groups for row in rows]
        assert on_page == [text.replace("-", "–") for text in shown]


def test_the_claim_is_judged(monkeypatch):
    for name in ("CLAIMS", "LATER"):
        monkeypatch.setattr(claims, name, dict(getattr(claims, name)))
    example("Add a claim", **vars(claims))
    judged = [one for one in claims.judge(load_runs()) if one.claim == "i"]
    assert {one.measure for one in judged} == {"test, clean", "test, limit"}
    assert all(one.verdict in ("holds", "fails", "undecided") for one in judged)


def test_the_experiment_has_its_runs_and_its_command(monkeypatch, capsys):
    monkeypatch.setitem(EXPERIMENTS, "depth", None)
    example("Add an experiment", EXPERIMENTS=EXPERIMENTS, Experiment=Experiment, Case=Case)
    configs = EXPERIMENTS["depth"].configs()
    noisy = sorted((one.layers, one.gamma) for one in configs if one.method == "noisin")
    assert len(configs) == 6 and noisy == [(layers, [gamma]) for layers in (1, 2) for gamma in (0.1, 0.3)]
    with pytest.raises(SystemExit):
        experiment_main(["depth", "--help"])
    assert "Depth, Penn Treebank" in capsys.readouterr().out
