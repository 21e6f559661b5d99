"""A run from its first epoch to its record: resume, early stopping, divergence, and what the model learns."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import mxnet as mx
import numpy as np
import pytest
import safetensors.numpy
from helpers.records import without_times

from experiments.catalogue import TABLE2
from noisin import model as models
from noisin import training
from noisin.commands.main import main
from noisin.config import Config
from noisin.data import synthetic
from noisin.data.corpus import load_corpus
from noisin.evaluation import Evaluator, make_evaluator
from noisin.methods import METHODS
from noisin.model import FIRST_EVALUATION, evaluation_seed, initial_model, stream
from noisin.optimizers import ClippingTrainer
from noisin.runs import record as records
from noisin.runs.directory import RunDirectory
from noisin.runs.formats import Progress, seal
from noisin.runs.listing import runs_table
from noisin.runs.record import read_record
from noisin.system import provenance
from noisin.system.errors import UserError
from noisin.system.files import read_json
from noisin.training import learning_rate, train

SMALL = {"hidden": 12, "batch_size": 8, "unroll": 10, "epochs": 4, "eval_samples": 3, "gamma": [0.3]}


@pytest.fixture(scope="module")
def corpus():
    """A few thousand words of the synthetic source."""
    whole = load_corpus("synthetic")
    return dataclasses.replace(whole, train=whole.train[:3000], valid=whole.valid[:600], test=whole.test[:600])


def run(config, directory, corpus):
    return train(config, directory, corpus, report=lambda line: None, progress=False)


class Killed(Exception):
    """Stands for whatever ends a process after an epoch."""


def run_and_kill(config, directory, corpus, after_epoch):
    def report(line):
        if line.startswith("epoch") and int(line.split()[1]) == after_epoch:
            raise Killed

    with pytest.raises(Killed):
        train(config, directory, corpus, report=report, progress=False)


# tests/runs/test_resume.py has the four methods of the paper, each with either optimizer.
@pytest.mark.parametrize(
    "method, optimizer, rate",
    [
        *((method, "adam", 0.005) for method in METHODS if method not in TABLE2.methods),
        ("dropout+noisin*", "sgd", 0.5),
    ],
)
def test_an_interrupted_run_ends_with_the_same_record_and_weights(tmp_path, corpus, method, optimizer, rate):
    config = Config(method=method, optimizer=optimizer, learning_rate=rate, decay=0.5, decay_after=2, **SMALL)
    whole = run(config, tmp_path / "whole", corpus)
    run_and_kill(config, tmp_path / "parts", corpus, after_epoch=1)
    run_and_kill(config, tmp_path / "parts", corpus, after_epoch=3)
    parts = run(config, tmp_path / "parts", corpus)
    assert without_times(parts) == without_times(whole)
    assert len(parts["epochs"]) == 4
    best = f"best-{whole['best_epoch']:04d}.safetensors"
    assert (tmp_path / "parts" / best).read_bytes() == (tmp_path / "whole" / best).read_bytes()


def test_the_record_names_all_that_trained_the_run(tmp_path, corpus, monkeypatch):
    config, lines = Config(**SMALL), []
    for epoch, commit, number in ((1, "aaaaaaa", 1), (2, "bbbbbbb+", 2), (3, "bbbbbbb+", 1)):
        monkeypatch.setattr(records, "git_revision", lambda: commit)  # noqa: B023
        monkeypatch.setattr(records, "threads", lambda: number)  # noqa: B023
        run_and_kill(config, tmp_path, corpus, after_epoch=epoch)
    monkeypatch.setattr(records, "git_revision", lambda: None)  # outside a checkout
    monkeypatch.setattr(records, "cpu_name", lambda: "another")
    record = train(config, tmp_path, corpus, report=lines.append, progress=False)
    assert record["git"] == "aaaaaaa, bbbbbbb+" and record["hardware"]["threads"] == [1, 2]
    assert record["hardware"]["cpu"].endswith(", another") and record["hardware"]["device"] == "cpu"
    assert record["versions"]["numpy"] == np.__version__
    assert re.match("cpu was '.*', is 'another': the result may differ by rounding", lines[2])
    assert read_record(tmp_path / "record.json") == record


def test_a_resume_with_another_number_of_threads_is_said(tmp_path, corpus, monkeypatch):
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)
    before, lines = records.threads(), []
    monkeypatch.setattr(records, "threads", lambda: before + 1)
    train(Config(**SMALL), tmp_path, corpus, report=lines.append, progress=False)
    assert lines[1] == "resuming after epoch 1"
    assert lines[2].startswith(f"threads was {before}, is {before + 1}: the result may differ by rounding")


def test_another_corpus_than_the_configurations_is_refused_before_any_file(tmp_path, corpus):
    for config, given in (
        (Config(corpus="ptb", **SMALL), corpus),
        (Config(**SMALL), dataclasses.replace(corpus, name="my.txt")),
    ):
        with pytest.raises(UserError, match=f"the corpus is {given.name}, but config has corpus='{config.corpus}'"):
            run(config, tmp_path / "run", given)
    assert not (tmp_path / "run").exists()


def test_another_seed_gives_another_run(tmp_path, corpus):
    records = [run(Config(seed=seed, **SMALL), tmp_path / str(seed), corpus) for seed in (1, 2)]
    assert records[0]["valid_ppl"] != records[1]["valid_ppl"]


def record_by_command(directory, threads, *options):
    """The record of a short `noisin train` of one process on so many threads."""
    command = [sys.executable, "-m", "noisin", "train", "--run-dir", str(directory), "--quiet", "--epochs", "1"]
    command += ["--method", "noisin*", "--gamma", "0.3", "--hidden", "64", "--batch-size", "40", "--unroll", "20"]
    # Passive: on a machine with other work, threads that wait by spinning are a hundred times slower.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    subprocess.run([*command, "--eval-samples", "2", *options], env=environment, check=True, stdout=subprocess.DEVNULL)
    return read_record(directory / "record.json")


def perplexities(record):
    test = record["test_ppl"]
    return [*(epoch[name] for epoch in record["epochs"] for name in ("train_ppl", "valid_ppl")), *test.values()]


def test_one_seed_gives_one_record_and_another_number_of_threads_changes_no_more_than_rounding(tmp_path):
    one, again = (record_by_command(tmp_path / name, 1) for name in ("one", "again"))
    assert without_times(one) == without_times(again)
    two = record_by_command(tmp_path / "two", 2)
    assert two["hardware"]["threads"] == 2
    # Threads sum in another order, which float32 rounds at 6e-8 of the sum, in each of some 50 steps. Another seed,
    # so other noise and weights, moves these numbers by at least 4e-3: what 1e-4 lets pass is nothing but rounding.
    assert perplexities(two) == pytest.approx(perplexities(one), rel=1e-4)
    other = record_by_command(tmp_path / "other", 1, "--seed", "2")
    assert perplexities(other) != pytest.approx(perplexities(one), rel=1e-3)


def test_a_run_without_a_test_leaves_that_split_alone_and_can_be_tested_later(tmp_path, corpus, monkeypatch):
    config, lines = Config(method="noisin", **SMALL), []
    whole = run(config, tmp_path / "whole", corpus)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "all", None)
        untested = train(config, tmp_path / "later", corpus, report=lines.append, progress=False, test=False)
    assert untested["test_ppl"] is None and untested["valid_ppl"] == whole["valid_ppl"]
    assert lines[-1].endswith("not tested") and not (tmp_path / "later" / "record.json").exists()
    assert without_times(run(config, tmp_path / "later", corpus)) == without_times(whole)


def test_a_finished_run_is_not_run_again(tmp_path, corpus, monkeypatch):
    config = Config(**SMALL)
    record = run(config, tmp_path, corpus)
    monkeypatch.setattr(training, "_Run", None)  # any training would fail
    assert run(config, tmp_path, corpus) == record


def test_a_directory_whose_name_is_not_utf_8_is_refused_before_any_training(tmp_path, corpus):
    with pytest.raises(UserError, match="its name is not in UTF-8"):
        run(Config(**SMALL), tmp_path / "d\udcff", corpus)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 47_000, "embedding": 1},
        {"eval_samples": 1000, "eval_batch_size": 1000},
        {"cell": "lstm", "hidden": 7_000, "samples": 1000},  # 4 gates are wider than the vocabulary
    ],
)
def test_an_array_beyond_mxnets_limit_is_refused(tmp_path, corpus, monkeypatch, options):
    monkeypatch.setattr(models, "MEMORY", 2**50)
    with pytest.raises(UserError, match="MXNet's limit is 2,147,483,647"):
        run(Config(**{**SMALL, **options}, method="noisin"), tmp_path, corpus)


def test_a_directory_of_another_run_is_refused_by_name(tmp_path, corpus):
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)
    with pytest.raises(UserError, match=r"hidden was 12, is 13"):
        run(Config(**{**SMALL, "hidden": 13}), tmp_path, corpus)
    with pytest.raises(UserError, match="the text is another one"):
        run(Config(**SMALL), tmp_path, dataclasses.replace(corpus, digest="0" * 64))


def test_a_checkpoint_of_nobody_knows_which_run_is_not_gone_on_with(tmp_path, corpus):
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="has a state.json but no config.json to say of which run"):
        run(Config(**SMALL, seed=2), tmp_path, corpus)


def test_a_vocabulary_that_is_not_that_of_the_run_is_written_anew(tmp_path, corpus):
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)
    whole = (tmp_path / "vocabulary.txt").read_bytes()
    (tmp_path / "vocabulary.txt").write_bytes(whole.replace(b"\n", b"\r\n", 5))
    run(Config(**SMALL), tmp_path, corpus)
    assert (tmp_path / "vocabulary.txt").read_bytes() == whole


def test_files_that_are_not_the_runs_own_are_left_alone(tmp_path, corpus):
    strangers = [
        tmp_path / "resnet50.safetensors",
        tmp_path / "best-model.safetensors",
        tmp_path / "best-0001.params",
        tmp_path / "events" / "mine.txt",
    ]
    (tmp_path / "events").mkdir()
    for path in strangers:
        path.write_text("dear to somebody")
    train(Config(**SMALL), tmp_path, corpus, report=lambda line: None, progress=False, events=True)
    assert [path.read_text() for path in strangers] == 4 * ["dear to somebody"]


@pytest.mark.parametrize("damage", ["truncate", "delete", "other"])
def test_damaged_weights_are_reported_not_used(tmp_path, corpus, damage):
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)
    weights = tmp_path / "epoch-0001.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "delete":
        weights.unlink()
    else:
        safetensors.numpy.save_file({"weight:decoder_bias": np.zeros(3)}, weights)
    with pytest.raises(UserError, match="epoch-0001.safetensors"):
        run(Config(**SMALL), tmp_path, corpus)


@pytest.mark.parametrize("damaged", ["epoch-0003.safetensors", "best-*.safetensors", "state.json"])
def test_a_checkpoint_with_a_file_missing_is_reported_and_the_one_before_is_used(tmp_path, corpus, damaged):
    config = Config(method="noisin", **SMALL)
    whole = run(config, tmp_path / "whole", corpus)
    run_and_kill(config, tmp_path / "parts", corpus, after_epoch=3)
    (newest,) = sorted((tmp_path / "parts").glob(damaged))[-1:]
    assert "0003" in newest.name or newest.name == "state.json"  # else the checkpoint before has it too
    newest.unlink()
    lines = []
    record = train(config, tmp_path / "parts", corpus, report=lines.append, progress=False)
    assert re.search(rf"{newest.name}.*; the checkpoint before it is used$", lines[1])
    assert lines[2] == "resuming after epoch 2"
    assert without_times(record) == without_times(whole)
    assert not list((tmp_path / "parts").glob("*-before*"))
    assert [path.name for path in (tmp_path / "parts").glob("epoch-*")] == ["epoch-0004.safetensors"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"progress": {"nonsense": 1}}'])
def test_a_damaged_state_file_is_one_clear_error(tmp_path, corpus, text):
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UserError, match="state.json"):
        run(Config(**SMALL), tmp_path, corpus)


def test_no_flipped_bit_of_a_state_is_taken(tmp_path, corpus):
    config = Config(**{**SMALL, "epochs": 1})
    run(config, tmp_path, corpus)
    directory, state = RunDirectory(tmp_path), tmp_path / "state.json"
    whole, progress = state.read_bytes(), directory.load()
    for place in range(0, 8 * len(whole), 29):  # every bit of a byte in its turn
        state.write_bytes(flipped(whole, place))
        try:
            assert directory.load() == progress  # as an e of an exponent that is an E
        except UserError as refusal:
            assert str(refusal).startswith((f"{state} is damaged", f"{state} is not"))


def flipped(content, place):
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_a_run_with_a_flipped_bit_ends_as_one_without_or_is_refused_in_one_line(tmp_path, corpus, seed):
    config, draw = Config(method="noisin", **SMALL), random.Random(seed)
    whole = run(config, tmp_path / "whole", corpus)
    run_and_kill(config, tmp_path / "parts", corpus, after_epoch=3)
    outcomes = []
    for path in sorted((tmp_path / "parts").iterdir()):
        if path.name in ("lock", "metrics.jsonl"):
            continue
        for place in draw.sample(range(8 * path.stat().st_size), 2 if path.name == "state.json" else 1):
            copy = tmp_path / f"{path.name}-{place}"
            shutil.copytree(tmp_path / "parts", copy)
            (copy / path.name).write_bytes(flipped(path.read_bytes(), place))
            try:
                assert without_times(run(config, copy, corpus)) == without_times(whole)
                outcomes.append(path.name)
            except UserError as refusal:
                assert path.name == "config.json" and re.search("config.json is (damaged|not)", str(refusal))
    assert outcomes.count("state.json") == 2 and "vocabulary.txt" in outcomes and "config.json" not in outcomes


@pytest.mark.parametrize(
    "change, says",
    [
        ({"seed": 2}, "state.json is damaged: it is of another run than config.json"),
        ({"noise": "uniform"}, "state.json is damaged: it is of another run"),
        ({"hidden": 13}, "state.json is damaged: it is of another run"),
    ],
)
def test_a_configuration_that_was_changed_after_training_is_refused(tmp_path, corpus, capsys, change, says):
    run(Config(method="noisin", **{**SMALL, "epochs": 1}), tmp_path / "run", corpus)
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["config"].update(change)
    for text, expected in ((content, "config.json is damaged: it was changed"), (seal(content), says)):
        path.write_text(json.dumps(text))
        with pytest.raises(UserError, match=expected):
            RunDirectory(tmp_path / "run").load_best_weights(None)
        assert main(["sample", str(tmp_path / "run"), "--words", "1"]) == 2
        assert expected in capsys.readouterr().err


def test_a_directory_of_the_format_before_is_one_line_that_says_what_to_do(tmp_path, corpus):
    config = Config(**SMALL).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "corpus_sha256": "0", "version": "0.1.0"}))
    (tmp_path / "epoch-0001.params").write_bytes(b"weights")
    with pytest.raises(UserError, match="written by an older version of noisin.*train again with another --run-dir"):
        run(Config(**SMALL), tmp_path, corpus)


@pytest.mark.parametrize("method, optimizer", [("noisin*", "adam"), ("dropout", "sgd")])
@pytest.mark.parametrize("killed", [False, True])
def test_a_finished_run_goes_on_with_more_epochs_as_one_that_had_them_at_once(
    tmp_path, corpus, method, optimizer, killed
):  # fmt: skip
    config = Config(method=method, optimizer=optimizer, decay=0.5, decay_after=1, **SMALL)
    whole = run(config, tmp_path / "whole", corpus)
    short = run(dataclasses.replace(config, epochs=2), tmp_path / "parts", corpus)
    assert short["status"] == "finished" and len(short["epochs"]) == 2
    if killed:
        run_and_kill(config, tmp_path / "parts", corpus, after_epoch=3)
        assert read_record(tmp_path / "parts" / "record.json") == short  # replaced when the longer run ends
        row = runs_table(tmp_path / "parts").iloc[0]
        assert (row["status"], row["epoch"]) == ("interrupted", "3 of 4")
    lines = []
    record = train(config, tmp_path / "parts", corpus, report=lines.append, progress=False)
    assert lines[1] == f"resuming after epoch {3 if killed else 2}"
    assert without_times(record) == without_times(whole) and read_record(tmp_path / "parts" / "record.json") == record
    for name in ("config.json", "epoch-0004.safetensors", f"best-{record['best_epoch']:04d}.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    with pytest.raises(UserError, match="epochs was 4, is 2.*no fewer epochs"):
        run(dataclasses.replace(config, epochs=2), tmp_path / "parts", corpus)


@pytest.mark.parametrize("status", ["early-stopped", "diverged"])
def test_a_run_that_ended_before_its_last_epoch_is_not_extended(tmp_path, corpus, monkeypatch, status):
    loss = {"early-stopped": 1.0, "diverged": math.nan}[status]
    monkeypatch.setattr(training.TrainingStep, "__call__", lambda *_: loss)  # which learns nothing
    config = Config(patience=1, **SMALL)
    assert run(config, tmp_path, corpus)["status"] == status
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}
    assert not [name for name in before if name.startswith("epoch-")]
    with pytest.raises(UserError, match=f"a run that is {status} after . epochs: more --epochs would add none"):
        run(dataclasses.replace(config, epochs=9), tmp_path, corpus)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"} == before


def test_each_random_stream_of_a_run_has_a_seed_of_its_own(tmp_path, corpus, monkeypatch):
    seeds, seed_mxnet = [], mx.random.seed
    monkeypatch.setattr(mx.random, "seed", lambda number: seeds.append(number) or seed_mxnet(number))
    run(Config(method="noisin", **SMALL), tmp_path, corpus)
    assert seeds == [*(stream(1, place) for place in range(5)), evaluation_seed(1)]
    # MXNet seeds 1,024 generators from 127 times the seed on: closer than this two streams share some.
    found = sorted(
        [stream(seed, place) for seed in range(30) for place in range(60)]
        + [evaluation_seed(seed, number) for seed in range(30) for number in range(20)]
    )
    assert min(np.diff(found)) > 1024 / 127
    # The epochs and evaluations of one run, and the same place in all runs, however large the seed.
    assert len({stream(7, place) for place in range(20_000)}) == 20_000
    assert FIRST_EVALUATION > next(f for f in dataclasses.fields(Config) if f.name == "epochs").metadata["high"]
    large = [0, 1, 2**15, 2**16, 2**16 + 1, 2**24, 2**30, 2**30 + 2**16, 2**31 - 1]
    assert len({stream(seed, 3) for seed in large}) == len(large)


def test_the_first_draws_of_the_test_are_not_the_initial_weights(corpus):
    config = Config(method="noisin", noise="uniform", **SMALL)
    weights = initial_model(config, len(corpus.vocabulary), mx.cpu()).embedding_weight.data().asnumpy().ravel()
    mx.random.seed(evaluation_seed(config.seed))
    draws = mx.nd.random.uniform(-1, 1, shape=weights.shape).asnumpy()
    assert abs(np.corrcoef(weights, draws)[0, 1]) < 5 / math.sqrt(weights.size)


def test_early_stopping_keeps_and_tests_the_best_epoch(tmp_path, corpus, monkeypatch):
    curve = iter([50.0, 40.0, 41.0, 39.0, 45.0, 44.0, 43.0])
    config = Config(**{**SMALL, "epochs": 20, "patience": 2})
    looks = []
    original = training.make_evaluator

    def make_evaluator(model, *rest):
        evaluator = original(model, *rest)
        clean, everything = evaluator.clean, evaluator.all
        evaluator.clean = lambda tokens: next(curve) if tokens is corpus.valid else clean(tokens)
        evaluator.all = lambda tokens, seed: looks.append(tokens) or everything(tokens, seed)
        return evaluator

    monkeypatch.setattr(training, "make_evaluator", make_evaluator)
    record = run(config, tmp_path, corpus)
    assert (record["status"], record["best_epoch"], record["valid_ppl"]) == ("early-stopped", 4, 39.0)
    assert len(record["epochs"]) == 6
    assert len(looks) == 1 and looks[0] is corpus.test  # test perplexity is looked at once
    # The weights tested are those of epoch 4: a run of just four epochs ends with the same test perplexity.
    monkeypatch.undo()
    four = run(dataclasses.replace(config, epochs=4), tmp_path / "four", corpus)
    assert four["best_epoch"] == 4 and record["test_ppl"] == four["test_ppl"]


def test_a_run_that_explodes_is_recorded_as_diverged(tmp_path, corpus):
    config = Config(optimizer="sgd", learning_rate=1000.0, activation="relu", **{**SMALL, "clip": 1e6})
    record = train(config, tmp_path, corpus, progress=False)
    assert record["status"] == "diverged" and record["test_ppl"] is None and record["valid_ppl"] is None
    assert re.match(r"epoch 1, batch \d+ \(step \d+\): ", record["reason"])
    json.dumps(read_json(tmp_path / "record.json"), allow_nan=False)


@pytest.mark.parametrize("in_a_row, status", [(5, "finished"), (6, "diverged")])
def test_a_run_may_explode_for_a_while(tmp_path, corpus, monkeypatch, in_a_row, status):
    step, batches = training.TrainingStep.__call__, []

    def exploding(self, inputs, targets):
        batches.append(step(self, inputs, targets))
        return 1e30 if 10 <= len(batches) < 10 + in_a_row else batches[-1]

    monkeypatch.setattr(training.TrainingStep, "__call__", exploding)
    monkeypatch.setattr(training, "LONGEST_EXPLOSION", 5)
    lines = []
    config = Config(**{**SMALL, "epochs": 1})
    record = train(config, tmp_path, corpus, report=lines.append, progress=False)
    assert record["status"] == status
    if status == "finished":
        words, ceiling = config.batch_size * config.unroll, 3 * math.log(len(corpus.vocabulary))
        calm = [loss / words for number, loss in enumerate(batches, 1) if not 10 <= number < 15]
        expected = math.exp((sum(calm) + 5 * ceiling) / len(batches))
        assert record["epochs"][0]["train_ppl"] == pytest.approx(expected, rel=1e-6)
        assert any(line.startswith(f"5 of the {len(batches)} batches of epoch 1 exploded") for line in lines)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_at_that_step(tmp_path, corpus, monkeypatch, poison):
    """In the second epoch: what was learned before is kept, tested and named; nothing is learned from the poison."""
    config = Config(**SMALL)
    steps = []
    step = ClippingTrainer.step

    def poisoned(self, batch_size):
        steps.append(batch_size)
        if len(steps) == 40:  # 37 batches are an epoch
            self._params[0].list_grad()[0].reshape(-1)[0] = poison
        step(self, batch_size)

    monkeypatch.setattr(ClippingTrainer, "step", poisoned)
    record = train(config, tmp_path, corpus, progress=False)
    assert len(steps) == 40
    assert record["status"] == "diverged" and len(record["epochs"]) == record["best_epoch"] == 1
    assert record["reason"] == f"epoch 2, batch 3 (step 40): the gradient's norm is {poison}"
    weights = tmp_path / "best-0001.safetensors"
    assert all(np.isfinite(values).all() for values in safetensors.numpy.load_file(weights).values())
    monkeypatch.undo()
    alone = run(dataclasses.replace(config, epochs=1), tmp_path / "alone", corpus)
    assert record["test_ppl"] == alone["test_ppl"] and read_record(tmp_path / "record.json") == record
    # What the messages advise: without its record the run is tested again, and not trained again.
    (tmp_path / "record.json").unlink()
    assert without_times(run(config, tmp_path, corpus)) == without_times(record)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, corpus, monkeypatch, loss):
    monkeypatch.setattr(training.TrainingStep, "__call__", lambda self, inputs, targets: loss)
    record = run(Config(**SMALL), tmp_path, corpus)
    assert record["reason"] == f"epoch 1, batch 1 (step 1): the loss is {loss}"


def test_a_run_that_explodes_in_every_batch_diverges_however_few_an_epoch_has(tmp_path, corpus, monkeypatch):
    step = training.TrainingStep.__call__
    monkeypatch.setattr(training.TrainingStep, "__call__", lambda *given: max(1e30, step(*given)))
    monkeypatch.setattr(training, "LONGEST_EXPLOSION", 40)
    run_and_kill(Config(**SMALL), tmp_path, corpus, after_epoch=1)  # the count outlives the process
    record = run(Config(**SMALL), tmp_path, corpus)
    assert record["status"] == "diverged" and len(record["epochs"]) == 1
    assert record["reason"].startswith("epoch 2, batch 4 (step 41): 41 batches in a row")  # 37 batches are an epoch


def test_a_test_perplexity_that_is_not_finite_is_null_in_the_record(tmp_path, corpus, capsys):
    """So much noise that a word's probability is too small for a float; the weights themselves are sound."""
    config = Config(method="noisin", init_scale=1.0, **{**SMALL, "gamma": [1000.0], "epochs": 1})
    lines = []
    record = train(config, tmp_path, corpus, report=lines.append, progress=False)
    assert read_record(tmp_path / "record.json") == record and record["status"] == "finished"
    assert record["test_ppl"]["bound"] is None and record["test_ppl"]["clean"] > 1
    assert lines[-1].startswith("finished: best epoch 1, valid ") and "not finite averaged over 3" in lines[-1]


def test_a_dtype_that_the_device_lacks_keeps_no_finished_run_from_being_shown(tmp_path, corpus, monkeypatch):
    def lacks(*_):
        raise UserError("no such product")

    record = run(Config(**SMALL), tmp_path / "finished", corpus)
    monkeypatch.setattr(training, "check_dtype", lacks)
    assert run(Config(**SMALL), tmp_path / "finished", corpus) == record
    with pytest.raises(UserError, match="no such product"):
        run(Config(**SMALL), tmp_path / "new", corpus)
    assert not (tmp_path / "new").exists()


def test_a_finished_run_without_its_record_is_tested_again_and_not_trained_again(tmp_path, corpus, monkeypatch):
    record = run(Config(**SMALL), tmp_path, corpus)
    (tmp_path / "record.json").unlink()
    monkeypatch.setattr(training.TrainingStep, "__call__", None)  # any training would fail
    assert without_times(run(Config(**SMALL), tmp_path, corpus)) == without_times(record)


def test_the_optimizer_goes_on_exactly_on_a_second_device_too(tmp_path, corpus):
    """MXNet counts updates for each device; Adam's rate depends on them. A second CPU stands for a second GPU."""

    def trained(steps, resume=None):
        net = mx.gluon.nn.Dense(3, in_units=2)
        mx.random.seed(1)
        net.initialize(mx.init.Uniform(1), ctx=mx.cpu(1))
        trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.1}, kvstore=None)
        progress = Progress()
        if resume:
            progress = resume.recover(print)
            resume.restore(net, trainer, progress)
        for step in range(progress.updates, steps):
            with mx.autograd.record():
                loss = (net(mx.nd.array([[1, step]], ctx=mx.cpu(1))) ** 2).sum()
            loss.backward()
            trainer.step(1)
        return net, trainer

    entry = dict.fromkeys(("train_ppl", "valid_ppl", "seconds", "tokens_per_second"), 1.0)
    directory = RunDirectory(tmp_path)
    directory.begin(Config(**SMALL), corpus)
    progress = Progress([{"epoch": 1, "gamma": [], **entry}], 1, 1.0, updates=2, started="2026-01-01T00:00:00Z")
    progress.origins.append(records.origin(mx.cpu()))
    directory.save(*trained(2), progress)
    whole, parts = (net.weight.data().asnumpy() for net, _ in (trained(5), trained(5, directory)))
    np.testing.assert_array_equal(parts, whole)


def test_the_commit_is_that_of_this_package_and_not_of_a_checkout_around_it(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, stdout=subprocess.DEVNULL)

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "system" / "provenance.py"))
    assert provenance.git_revision() is None
    git("init", "-q")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "another project")
    (tmp_path / "__init__.py").touch()
    assert provenance.git_revision() is None
    git("add", "__init__.py")
    assert re.fullmatch("[0-9a-f]{40}[+]", provenance.git_revision())


def test_the_spread_of_the_input_noise_is_in_the_metrics(tmp_path, corpus):
    record = run(Config(method="noisin*", input_gamma=0.4, **{**SMALL, "epochs": 1}), tmp_path, corpus)
    (entry,) = record["epochs"]
    assert 0.1 < entry["input_gamma"] != 0.4 and len(entry["gamma"]) == 1


def test_options_that_do_not_act_do_not_tell_runs_apart():
    assert Config(method="none", gamma=[0.7], dropout_states=0.5, lower_bound=0.3) == Config(method="none")
    assert Config(method="dropout", gamma=[0.7]) == Config(method="dropout")
    assert Config(method="noisin", lower_bound=0.15) == Config(method="noisin")
    assert Config(method="noisin", gamma=[0.7]) != Config(method="noisin")
    assert Config(method="noisin*", lower_bound=0.15) != Config(method="noisin*")
    assert Config(method="dropout", dropout_states=0.5) != Config(method="dropout")
    assert Config(cell="lstm", activation="tanh") == Config(cell="lstm")
    assert Config(forget_bias=1.0) == Config() and Config(cell="lstm", forget_bias=1.0) != Config(cell="lstm")
    assert Config(decay_after=2) == Config() and Config(decay=0.5, decay_after=2) != Config(decay=0.5)
    assert Config(corpus="ptb", max_vocabulary=50) == Config(corpus="ptb")
    assert Config(corpus="my.txt", max_vocabulary=50) != Config(corpus="my.txt")
    assert Config(samples=4, eval_samples=2) == Config()  # without noise all trajectories are one
    for method in ("dropout", "noisin", "noisin*"):
        for name in ("samples", "eval_samples"):
            assert Config(method=method, **{name: 2}) != Config(method=method)
    two = {"method": "noisin", "layers": 2}
    assert Config(**two, gamma=[0.3, 0.3]) == Config(**two, gamma=[0.3]) != Config(**two, gamma=[0.3, 0.4])
    whole = Config(method="noisin", learning_rate=1, gamma=[2], noise="gamma", noise_parameters={"k": 2})
    assert whole.name == Config(**{**whole.to_dict(), "learning_rate": 1.0, "gamma": [2.0]}).name
    assert '"learning_rate": 1.0' in json.dumps(whole.to_dict()) and '"k": 2.0' in json.dumps(whole.to_dict())


def test_the_learning_rate_halves_after_the_fourth_epoch():
    config = Config(optimizer="sgd", learning_rate=1.0, decay=0.5, decay_after=4)
    assert [learning_rate(config, epoch) for epoch in range(1, 8)] == [1, 1, 1, 1, 0.5, 0.25, 0.125]
    assert {learning_rate(Config(), epoch) for epoch in (1, 5, 40)} == {0.001}


def test_each_epoch_has_the_rate_of_the_schedule(tmp_path, corpus, monkeypatch):
    rates, step = [], ClippingTrainer.step

    def noting(trainer, *arguments):
        rates.append(trainer.learning_rate)
        step(trainer, *arguments)

    monkeypatch.setattr(ClippingTrainer, "step", noting)
    run(Config(learning_rate=0.02, decay=0.5, decay_after=2, **SMALL), tmp_path, corpus)
    batches, rest = divmod(len(rates), 4)
    assert rest == 0 and rates == [rate for rate in (0.02, 0.02, 0.01, 0.005) for _ in range(batches)]


@pytest.mark.parametrize("method", ["none", "dropout", "noisin"])
def test_each_epoch_has_noise_of_its_own(tmp_path, corpus, monkeypatch, method):
    monkeypatch.setattr(ClippingTrainer, "step", lambda *_: None)  # the weights stay: epochs differ by the noise alone
    record = run(Config(method=method, **SMALL), tmp_path, corpus)
    assert len({epoch["train_ppl"] for epoch in record["epochs"]}) == (1 if method == "none" else 4)


def test_the_record_has_what_tools_read(tmp_path, corpus):
    record = run(Config(method="noisin*", **SMALL), tmp_path, corpus)
    assert record == read_json(tmp_path / "record.json")
    expected = (
        "corpus cell activation layers hidden method noise gamma seed dtype parameters epochs best_epoch valid_ppl "
        "test_ppl status config git versions hardware started finished"
    )
    assert set(expected.split()) <= set(record)
    assert set(record["epochs"][0]) == {"epoch", "train_ppl", "valid_ppl", "seconds", "tokens_per_second", "gamma"}
    assert set(record["test_ppl"]) == {
        *("clean", "bound", "averaged", "averaged_limit", "averaged_limit_error", "samples")
    }
    assert set(record["versions"]) == {"mxnet", "gluonnlp", "numpy", "python", "noisin"}
    assert record["status"] == "finished" and record["config"] == Config(method="noisin*", **SMALL).to_dict()
    vocabulary, hidden = len(corpus.vocabulary), SMALL["hidden"]
    weights = 2 * vocabulary * hidden + vocabulary + 2 * hidden * hidden + 2 * hidden
    assert record["parameters"] == weights + 1  # rho, from which gamma is learned
    assert record["gamma"] == record["epochs"][record["best_epoch"] - 1]["gamma"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == record["epochs"]


def test_the_record_has_the_marginal_likelihood_if_asked_for(tmp_path, corpus):
    options = {**SMALL, "epochs": 1, "eval_batch_size": 50}
    plain = run(Config(method="noisin", **options), tmp_path / "plain", corpus)["test_ppl"]
    test = run(Config(method="noisin", eval_particles=5, **options), tmp_path / "particles", corpus)["test_ppl"]
    assert {name: test[name] for name in plain} == plain
    assert (test["particles"], test["repetitions"]) == (5, 3) and 1 < test["effective_particles"] <= 5
    assert 0 < test["marginal_deviation"] < 0.1 * test["marginal"] and test["marginal"] < 1.01 * test["bound"]
    assert read_record(tmp_path / "particles" / "record.json")["test_ppl"] == test


def test_train_perplexity_is_that_of_the_words_trained_on(tmp_path, corpus):
    """With next to no rate nothing is learned: the training set scores as by the evaluator, but for its edges."""
    config = Config(learning_rate=1e-9, **{**SMALL, "epochs": 1})
    record = run(config, tmp_path, corpus)
    model = initial_model(config, len(corpus.vocabulary), mx.cpu())
    expected = make_evaluator(model, config, corpus.vocabulary, mx.cpu()).clean(corpus.train)
    assert record["epochs"][0]["train_ppl"] == pytest.approx(expected, rel=2e-3)
    assert record["epochs"][0]["valid_ppl"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("method", ["none", "noisin"])
def test_a_trained_model_comes_close_to_the_floor_and_not_below_it(tmp_path, method):
    """On the whole synthetic corpus: within 25% of the source's own perplexity, and no better than the source."""
    corpus = load_corpus("synthetic")
    config = Config(
        method=method,
        activation="tanh",
        hidden=64,
        learning_rate=0.003,
        batch_size=20,
        unroll=20,
        epochs=9,
        gamma=[0.3],
    )
    record = run(config, tmp_path, corpus)
    ours = record["test_ppl"]["clean"]
    assert ours < 1.25 * corpus.floor
    # The source's score of the same words is the best there is, up to what chance allows on a finite split.
    scores = synthetic.source().log_probabilities(corpus.test)
    error = scores.std() / math.sqrt(len(scores))
    assert math.log(ours) > -scores.mean() - 5 * error
    assert abs(-scores.mean() - corpus.entropy_rate) < 5 * error
    # Learning is what did it: the words' frequencies alone give several times as much.
    frequencies = np.bincount(corpus.train, minlength=len(corpus.vocabulary)) / len(corpus.train)
    assert math.exp(-np.log(frequencies[corpus.test]).mean()) > 4 * ours


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "noisin", "train", "--run-dir", str(tmp_path / "run"), "--hidden", "8"]
    command += ["--epochs", "400", "--patience", "400", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "run" / "state.json").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["noisin: interrupted; the same command resumes after the last finished epoch"]
    before = len(RunDirectory(tmp_path / "run").load().epochs)
    assert 1 <= before < 400
    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert again.stdout is not None
    assert again.stdout.readline() == f"run {tmp_path / 'run'}\n"
    assert again.stdout.readline() == f"resuming after epoch {before}\n"
    assert again.stdout.readline().split()[:2] == ["epoch", str(before + 1)]
    again.kill()
    again.communicate()
