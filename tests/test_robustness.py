"""Calibration and perplexity under noise: against counts by hand, numpy, and the model that has the noise itself."""

from __future__ import annotations

import os
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from helpers.models import make_language_model
from matplotlib.image import imread

from noisin.commands.main import main
from noisin.config import Config
from noisin.evaluation import Evaluator
from noisin.robustness import calibration, noisy_copy, predictions

OPTIONS = {"cell": "lstm", "layers": 2, "hidden": 6, "embedding": 6}
CONFIG = Config(**OPTIONS, unroll=4, eval_batch_size=3)
TOKENS = np.random.RandomState(0).randint(0, 9, 50).astype(np.int32)


def test_the_error_is_the_mean_distance_of_confidence_and_accuracy():
    confidence = np.array([0.15, 0.15, 0.15, 0.95, 0.99, 1.0])
    right = np.array([False, True, True, True, True, False])
    found = calibration(confidence, right, intervals=10)
    assert list(found.words) == [0, 3, 0, 0, 0, 0, 0, 0, 0, 3]
    np.testing.assert_allclose(found.accuracy[[1, 9]], [2 / 3, 2 / 3])
    np.testing.assert_allclose(found.confidence[[1, 9]], [0.15, 0.98])
    assert found.error == pytest.approx((3 * (2 / 3 - 0.15) + 3 * (0.98 - 2 / 3)) / 6)


def test_predictions_that_are_right_as_often_as_they_say_are_calibrated():
    random = np.random.RandomState(1)
    confidence = random.uniform(size=200_000)
    assert calibration(confidence, random.uniform(size=200_000) < confidence).error < 0.01
    assert calibration(confidence, random.uniform(size=200_000) < confidence**2).error == pytest.approx(1 / 6, abs=0.01)


def test_predictions_are_those_of_the_whole_text_word_by_word():
    """One column, whatever the length of a pass, is one text: its likeliest words by a softmax in numpy."""
    model = make_language_model(9, **OPTIONS)
    whole = mx.nd.array(np.concatenate([[1], TOKENS[:-1]])[:, None])
    logits = model.unroll(50, whole, model.begin_state(1))[0].asnumpy().astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one_column = Config(**OPTIONS, unroll=4, eval_batch_size=1)
    confidence, right = predictions(model, TOKENS, one_column, eos=1, device=mx.cpu())
    np.testing.assert_allclose(confidence, p.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(right, p.argmax(axis=1) == TOKENS)


def test_averaging_averages_probabilities_over_the_noise():
    """With the same draws, the confidence is that of the mean of the trajectories' distributions."""
    config = Config(**OPTIONS, unroll=50, eval_batch_size=1, method="noisin", gamma=[1.0])
    model = make_language_model(9, **OPTIONS, method="noisin", gamma=[1.0])
    mx.random.seed(3)
    many, _ = predictions(model, TOKENS, config, eos=1, device=mx.cpu(), samples=20)
    whole = mx.nd.array(np.tile(np.concatenate([[1], TOKENS[:-1]])[:, None], (1, 20)))
    mx.random.seed(3)
    with mx.autograd.train_mode():
        logits = model.unroll(50, whole, model.begin_state(20))[0].asnumpy().reshape(50, 20, 9)
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    expected = (p / p.sum(axis=2, keepdims=True)).mean(axis=1)
    np.testing.assert_allclose(many, expected.max(axis=1), rtol=1e-5)
    off, _ = predictions(model, TOKENS, config, eos=1, device=mx.cpu())
    assert np.abs(many - off).max() > 0.005


@pytest.mark.parametrize("method", ["none", "dropout+noisin*", "noisin"])
@pytest.mark.parametrize("decoder", ["own", "tied"])
def test_a_noisy_copy_is_the_network_with_that_noise_alone(method, decoder):
    options = {**OPTIONS, "method": method, "decoder": decoder}
    if "noisin" in method:
        options.update(noise="bernoulli", noise_mode="multiplicative", gamma=[0.5])
    model, config = make_language_model(9, **options), Config(**options, unroll=4, eval_batch_size=3)

    def evaluator(of):
        return Evaluator(of, 1, 3, 4, samples=1)

    quiet = evaluator(noisy_copy(model, config, 0.0, mx.cpu()))
    assert quiet.bound(TOKENS) == pytest.approx(evaluator(model).clean(TOKENS), rel=1e-6)
    same = make_language_model(9, **OPTIONS, decoder=decoder, method="noisin", gamma=[0.4])
    weights = model.collect_params()
    for name, parameter in same.collect_params().items():
        if "gamma" not in name:
            parameter.set_data(weights[name].data())
    noisy = evaluator(noisy_copy(model, config, 0.4, mx.cpu()))
    assert noisy.bound(TOKENS, seed=5) == pytest.approx(evaluator(same).bound(TOKENS, seed=5), rel=1e-6)
    assert noisy.bound(TOKENS, seed=5) != quiet.bound(TOKENS, seed=5)


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["--hidden", "8", "--epochs", "1", "--batch-size", "20", "--unroll", "20", "--no-test", "--quiet"]
    for method in ("none", "noisin"):
        assert main(["train", "--method", method, "--run-dir", method, *common]) == 0
    capsys.readouterr()
    assert main(["robustness", "none", "noisin"]) == 0
    header, none, noisin, written = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "method", "noise", "0"] and header.endswith("ECE, noise off ECE, averaged")
    assert none.split()[:2] == ["none", "None"] and noisin.split()[:2] == ["noisin", "NOISIN"]
    assert none.split()[-1] == "-" and float(noisin.split()[-2]) > 0
    assert main(["evaluate", "none"]) == 0
    assert f'"clean": {none.split()[2]}' in capsys.readouterr().out
    assert written == "Written: robustness.png" and imread("robustness.png").std() > 0
    # Runs on different texts, or with different types, are told apart.
    Path("own.txt").write_text("one two three four five\n" * 900, encoding="utf-8")
    own = ["--method", "none", "--corpus", "own.txt", "--run-dir", "own"]
    assert main(["train", *own, *common]) == 0
    capsys.readouterr()
    assert main(["robustness", "none", "own"]) == 0
    table = capsys.readouterr().out.splitlines()
    found = [line.split()[1:4] for line in table if line.split()[0] in ("none", "own")]
    assert "corpus" in table[0] and [words[0] for words in found] == ["synthetic,", "own.txt,"]
    assert found[1] == ["own.txt,", "7", "types"]
    os.mkdir("a")
    Path("a", "own.txt").write_text("one two three four five\n" * 800, encoding="utf-8")
    assert main(["train", *own[:2], "--corpus", "a/own.txt", "--run-dir", "namesake", *common]) == 0
    capsys.readouterr()
    assert main(["robustness", "own", "namesake"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["own.txt,", "a/own.txt,"]
    os.rename("own.txt", "moved.txt")
    assert main(["robustness", "own"]) == 2
    assert "say where it is with --corpus" in capsys.readouterr().err
    assert main(["robustness", "own", "--corpus", "a/own.txt"]) == 2
    assert "a/own.txt is not the text that own was trained on" in capsys.readouterr().err
    assert main(["robustness", "own", "--corpus", "moved.txt"]) == 0
    capsys.readouterr()
    assert main(["robustness", "nowhere"]) == 2
    assert main(["robustness", "none", "--figure", "no-folder/f.png"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "nowhere" in errors[0] and "no-folder" in errors[1]
