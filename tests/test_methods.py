"""Each method works from training to sampling; one declared elsewhere goes through every table and page."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from helpers.processes import ROOT
from mxnet.gluon import rnn

from experiments.catalogue import EXPERIMENTS, Case, Experiment
from experiments.report.build import write_report
from experiments.report.claims import judge
from experiments.report.runs import load_runs, name_of
from experiments.report.tables import exact, frame, lines
from noisin.commands.main import main
from noisin.config import Config
from noisin.data.corpus import load_corpus
from noisin.methods import METHODS, Method, Regulariser
from noisin.runs.record import read_record
from noisin.system.errors import UserError
from noisin.system.files import write_json
from noisin.training import train

EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SMALL = {"hidden": 4, "layers": 2, "batch_size": 100, "epochs": 1, "eval_samples": 3, "patience": 9}


@pytest.fixture
def zoneout():
    """The method that docs/extending.md declares."""
    (code,) = re.findall(r"## Add a method.*?```python\n(.*?)```", EXTENDING, re.DOTALL)
    try:
        exec(code, {"rnn": rnn, "Regulariser": Regulariser, "Method": Method, "METHODS": METHODS})
        yield METHODS["zoneout"]
    finally:
        METHODS.pop("zoneout", None)


def quiet(line):
    """Say nothing of a run."""


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_evaluates_and_samples(tmp_path, capsys, method):
    config = Config(method=method, **SMALL)
    record = train(config, tmp_path / "run", load_corpus("synthetic"), report=quiet, progress=False)
    test, spreads = record["test_ppl"], record["gamma"]
    assert len(spreads) == (2 if "noisin" in method else 0)
    assert test["samples"] == (1 if method == "none" else 3)
    assert (test["clean"] == test["bound"]) == (method == "none")
    assert test["averaged_limit"] <= test["averaged"] <= test["bound"]
    assert main(["evaluate", str(tmp_path / "run"), "--samples", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == (1 if method == "none" else 2)
    assert main(["sample", str(tmp_path / "run"), "--words", "3"]) == 0
    assert len(capsys.readouterr().out.split()) > 0


def test_what_is_together_in_one_method_acts_together():
    both = METHODS["dropout+noisin*"]
    assert both.regularisers == METHODS["dropout"].regularisers + METHODS["noisin*"].regularisers
    config = Config(method="dropout+noisin*", dropout_states=0.3, gamma=[0.4], lower_bound=0.2)
    assert (config.dropout_states, config.gamma, config.lower_bound) == (0.3, [0.4], 0.2)
    assert name_of(config) == "Dropout + NOISIN* (rates 0.2, 0.3, 0.2, 0.1; γ from 0.4, bound 0.2)"
    assert not config.acts("standard_dropout")
    apart = [Config(method=name, dropout_states=0.3, gamma=[0.4], lower_bound=0.2) for name in METHODS]
    assert len({config.digest for config in apart}) == len(METHODS)
    # An option that does not act does not tell runs apart.
    assert Config(method="noisin", dropout_states=0.3) == Config(method="noisin")
    with pytest.raises(UserError, match="must start above its lower bound"):
        Config(method="standard-dropout+noisin*", gamma=[0.1])


def test_methods_tell_their_variants_apart():
    config = Config(method="noisin", gamma=[0.5], noise="gamma", noise_parameters={"k": 3}, noise_mode="multiplicative")
    assert name_of(config) == "NOISIN (γ 0.5 multiplicative gamma k=3)"
    assert name_of(replace(config, noise="gaussian", noise_parameters={})) == "NOISIN (γ 0.5 multiplicative gaussian)"
    assert name_of(Config(method="noisin", noise="laplace")) == "NOISIN (γ 0.2 laplace)"
    assert name_of(Config(method="noisin")) == "NOISIN (γ 0.2)"
    dropped = Config(method="dropout", layers=2)
    assert METHODS["dropout"].described(dropped) == "rates 0.2, 0.2, 0.2, 0.1"
    every = replace(dropped, dropout_output_layers="every")
    assert METHODS["dropout"].described(every) == "rates 0.2, 0.2, 0.2, 0.1, outputs of every layer"
    assert METHODS["none"].described(Config()) == ""


def test_a_method_declared_elsewhere_goes_from_training_to_the_page(tmp_path, monkeypatch, capsys, zoneout):
    experiment = Experiment(
        name="outside",
        title="A method from outside",
        setting={"corpus": "synthetic", **SMALL},
        methods={"none": [{}], "zoneout": [{}]},
        cases=[Case({}, {"none": 100.0, "zoneout": 90.0})],
    )
    monkeypatch.setitem(EXPERIMENTS, "outside", experiment)
    results = tmp_path / "results"
    (results / "outside").mkdir(parents=True)
    for config in experiment.configs():
        directory = tmp_path / config.name
        write_json(tmp_path / "options.json", config.to_dict())
        options = ["--config", str(tmp_path / "options.json"), "--run-dir", str(directory)]
        assert main(["train", "--quiet", *options]) == 0
        record = read_record(directory / "record.json")
        assert record["config"] == config.to_dict()
        write_json(results / "outside" / f"{config.name}.json", record)
        assert main(["evaluate", str(directory)]) == 0 and main(["sample", str(directory), "--words", "2"]) == 0
    assert main(["runs", str(tmp_path)]) == 0
    assert " zoneout " in capsys.readouterr().out
    runs = load_runs(results)
    ours = next(run for run in runs if run.config.method == "zoneout")
    assert ours.stochastic and ours.test("clean") != ours.test("bound")  # and is evaluated as what it is
    table = frame(experiment, lines(experiment, runs))
    assert list(table["method"]) == ["None", "Zoneout"]
    assert table["test clean"].iloc[1] == f"{ours.test('clean'):.1f}" and table["published"].iloc[1] == "90.0"
    assert list(exact(lines(experiment, runs))["method"]) == ["None", "Zoneout"]
    assert judge(runs)  # of which no claim speaks
    write_report(tmp_path / "out", results)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Zoneout" in page and f"{ours.test('clean'):.1f}" in page
    for file in ("outside-test.svg", "outside-curves.svg"):
        assert "Zoneout" in (tmp_path / "out" / file).read_text(encoding="utf-8")
