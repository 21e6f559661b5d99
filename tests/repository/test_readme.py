"""What the README shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from helpers.processes import ROOT
from mxnet import autograd

from noisin import noise
from noisin.commands.main import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
CELL, FAMILY = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run_and_are_noisy(monkeypatch):
    monkeypatch.setattr(noise, "FAMILIES", dict(noise.FAMILIES))
    scope = {}
    exec(CELL, scope)
    assert scope["outputs"].shape == (8, 35, 200)
    assert np.isfinite(scope["outputs"].asnumpy()).all()
    exec(FAMILY, scope)
    scope["own"].initialize()
    with autograd.train_mode():
        deviation = scope["own"](mx.nd.zeros((1000, 1000))).asnumpy().std()
    assert abs(deviation - 0.2) < 0.2 * 3e-3  # five standard errors, with a kurtosis of 2.4


@pytest.mark.parametrize("line", re.findall(r"^    noisin train (.*?)(?:  #.*)?$", README, re.MULTILINE))
def test_the_training_commands_of_the_readme_are_accepted(monkeypatch, tmp_path, line):
    from noisin.commands import train as command

    monkeypatch.chdir(tmp_path)
    Path("my-book.txt").write_text("a line of the book\n" * 100)
    trained = []
    monkeypatch.setattr(command, "train", lambda config, *_, **__: trained.append(config) or {"status": "finished"})
    assert main(["train", *line.replace("'", "").split()]) == 0
    assert "noisin" in trained[0].method
