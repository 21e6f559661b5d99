"""What the README shows works as it stands."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from helpers.processes import ROOT

from noisin import noise
from noisin.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs_and_is_noisy():
    scope = {}
    exec(BLOCKS[0], scope)
    assert scope["outputs"].shape == (8, 35, 200)
    assert np.isfinite(scope["outputs"].asnumpy()).all()


def test_the_noise_family_of_the_readme_is_found_by_its_name_and_standardised(monkeypatch):
    monkeypatch.setattr(noise, "FAMILIES", dict(noise.FAMILIES))
    exec(BLOCKS[1], {"dataclass": dataclass, "NoiseFamily": noise.NoiseFamily, "math": math})
    draws = noise.make_family("triangular").sample(mx.nd, mx.nd.zeros(1_000_000)).asnumpy().astype(np.float64)
    assert abs(draws.mean()) < 5 / 1000
    assert abs(draws.var() - 1) < 5 * math.sqrt((draws**4).mean() - 1) / 1000


@pytest.mark.parametrize("line", re.findall(r"^    noisin train (.*?)(?:  #.*)?$", README, re.MULTILINE))
def test_the_training_commands_of_the_readme_are_accepted(monkeypatch, tmp_path, line):
    from noisin import cli

    monkeypatch.chdir(tmp_path)
    Path("my-book.txt").write_text("a line of the book\n" * 100)
    trained = []
    monkeypatch.setattr(cli, "train", lambda config, *_, **__: trained.append(config) or {"status": "finished"})
    assert main(["train", *line.replace("'", "").split()]) == 0
    assert "noisin" in trained[0].method
