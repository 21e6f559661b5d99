"""A training whose numbers are the same on every Python and NumPy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from noisin.runs.record import read_record

# Made with Python 3.11 and NumPy 1.23. On one machine, Python 3.13 with NumPy 2.5 gives every bit of them. Processors
# differ in the order in which they sum, by about a millionth here, so half of the last printed digit is the tolerance.
TRAIN, VALID, TEST = [184.03, 103.19], [126.71, 87.73], {"clean": 87.46, "averaged": 87.59}
OPTIONS = "--corpus synthetic --method noisin* --gamma 0.3 --hidden 64 --layers 2 --epochs 2 --device cpu --quiet"


@pytest.mark.smoke
def test_two_epochs_with_a_learned_gamma_give_the_committed_perplexities(tmp_path):
    command = [sys.executable, "-m", "noisin", "train", *OPTIONS.split(), "--run-dir", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    record = read_record(tmp_path / "record.json")
    assert [epoch["train_ppl"] for epoch in record["epochs"]] == pytest.approx(TRAIN, abs=0.005)
    assert [epoch["valid_ppl"] for epoch in record["epochs"]] == pytest.approx(VALID, abs=0.005)
    assert {name: record["test_ppl"][name] for name in TEST} == pytest.approx(TEST, abs=0.005)
    assert all(0.1 < gamma < 0.3 for epoch in record["epochs"] for gamma in epoch["gamma"])
