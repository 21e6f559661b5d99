"""The search for gamma: what is searched, pruning, resume, the best trial's command, and what is refused."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers.commands import refused
from helpers.records import sealed_anew

from noisin.commands.main import main
from noisin.config import Config
from noisin.data.corpus import load_corpus
from noisin.evaluation import Evaluator
from noisin.methods import METHODS
from noisin.optimizers import Diverged
from noisin.runs.formats import Progress
from noisin.runs.record import read_record
from noisin.search import SPACE, Space, train_command
from noisin.system import process
from noisin.system.errors import UserError
from noisin.system.process import DIVERGED
from noisin.training import TrainingStep, train

optuna = pytest.importorskip("optuna", reason="Optuna is an extra: pip install '.[tune]' in noisin's folder")
from noisin import tuning  # noqa: E402
from noisin.tuning import Study, best_valid, tune  # noqa: E402

METHOD_NAMES = ["noisin", "dropout+noisin"]
FIXED = {"corpus": "text.txt", "hidden": 4, "batch_size": 4, "unroll": 5, "epochs": 3, "eval_batch_size": 2}
OPTIONS = [word for name, value in FIXED.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(autouse=True)
def in_folder(monkeypatch, tmp_path):
    """A folder with a tiny text, trials that run in this process, and no pickle that could be loaded."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("one two three four\nfive six two\n" * 60)
    monkeypatch.setattr(tuning, "run_process", in_this_process)
    monkeypatch.setattr(tuning, "FIRST", 2)
    monkeypatch.setattr(tuning, "WARM_UP", 2)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)


class Stopped(Exception):
    """Stands for the signal that ends a run."""


def in_this_process(job, say, unwanted, options):
    """As `run_process`, but quick, and with a test split that ends the test if it is evaluated."""
    assert "--no-test" in options
    config = Config(**json.loads(Path(job.directory, "options.json").read_text()))

    def report(line):
        say(line)
        if unwanted():
            raise Stopped

    try:
        record = train(config, job.directory, load_corpus(config.corpus), report=report, progress=False, test=False)
    except Stopped:
        return -15
    return DIVERGED if record["status"] == "diverged" else 0


@pytest.fixture
def untouched(monkeypatch):
    """Let any evaluation of the test split fail."""
    splits = {load_corpus("text.txt").valid.tobytes(): "valid"}
    clean = Evaluator.clean
    monkeypatch.setattr(Evaluator, "all", None)
    monkeypatch.setattr(Evaluator, "clean", lambda self, ids: splits[ids.tobytes()] and clean(self, ids))


def search(folder, trials, methods=METHOD_NAMES, report=lambda line: None, **fixed):
    return tune(Space(methods, {**FIXED, **fixed}), load_corpus("text.txt"), Path(folder), trials, report=report)


def outcome(study):
    """What a repetition of the study must reproduce."""
    return [(trial.number, trial.state, trial.params, trial.intermediate_values) for trial in study.ended()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_acts_in_a_method_is_searched_in_valid_ranges(method, optimizer):
    space = Space([method], {"optimizer": optimizer, "lower_bound": 0.4})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        config = space.suggest(trial)
        assert config.method == method
        acting = {searched.option for searched in SPACE if config.acts(searched.option)}
        assert set(trial.params) == {"method", "learning_rate", *acting}
        for name in acting:
            value, chosen = getattr(config, name), trial.params[name]
            expected = chosen if isinstance(chosen, str) else pytest.approx(chosen, rel=6e-3)
            assert (value[0] if name == "gamma" else value) == expected
    assert (trial.params["learning_rate"] >= 0.1) == (optimizer == "sgd")


def test_an_option_that_is_given_is_not_searched():
    space = Space(["noisin"], {"noise": "gamma", "noise_parameters": {"k": 3.0}, "gamma": [0.3]})
    trial = optuna.create_study().ask()
    assert space.suggest(trial).gamma == [0.3] and set(trial.params) == {"method", "noise_mode", "learning_rate"}


def test_the_command_of_a_configuration_is_that_configuration(monkeypatch):
    from noisin.commands import train as command

    trained = []
    monkeypatch.setattr(command, "train", lambda config, *rest, **options: trained.append(config) or {"status": ""})
    config = Config(
        **{**FIXED, "corpus": "a b.txt", "unroll": 2, "method": "dropout+noisin*", "layers": 2, "gamma": [0.3, 0.125]},
        noise="beta",
        noise_parameters={"a": 2.0, "b": 2 / 3},
        learning_rate=1e-5,
    )
    Path("text.txt").rename("a b.txt")
    assert main(shlex.split(train_command(config))[1:]) == 0
    assert trained == [config]
    assert train_command(config, ["--data-dir", "a b"]).startswith("noisin train --data-dir 'a b' --")


def test_a_search_prunes_bad_trials_and_leaves_the_test_split_alone(untouched, monkeypatch):
    lines = []
    study = search("study", 6, report=lines.append)
    ended = study.ended()
    pruned = [trial for trial in ended if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(ended) == len(lines) == 6 and pruned
    for trial in pruned:
        before = [t for t in ended[: ended.index(pruned[0])] if t.number < trial.number]
        at_that_epoch = sorted(t.intermediate_values[trial.last_step] for t in before)
        assert trial.last_step >= tuning.WARM_UP and len(before) >= tuning.FIRST
        assert best_valid(trial) > at_that_epoch[(len(before) - 1) // 2]
    assert study.best().value == min(t.value for t in ended if t not in pruned) == best_valid(study.best())
    assert sorted(path.name for path in Path("study").iterdir()) == ["lock", "study.jsonl"]
    table = study.table()
    assert table["valid"][0] == f"{study.best().value:.2f}" and list(table["status"])[-len(pruned) :][0] == "pruned"
    assert (table["dropout_states"] != "").tolist() == (table["method"] == "dropout+noisin").tolist()


def test_an_interrupted_search_goes_on_as_it_would_have(monkeypatch):
    whole = search("whole", 4)
    for trial, epoch in ((1, 1), (1, 2), (3, 1)):

        def interrupted(job, say, unwanted, options, trial=trial, epoch=epoch):
            def hear(line):
                say(line)
                if job.directory.endswith(f"trial-{trial:04d}") and line.startswith(f"epoch {epoch:3d}"):
                    raise KeyboardInterrupt

            return in_this_process(job, hear, unwanted, options)

        monkeypatch.setattr(tuning, "run_process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search("parts", 4)
        assert Path(f"parts/trial-{trial:04d}/state.json").exists()
    for left in ("trial-0001", "trial-0001-kept"):  # by a kill; by the user
        Path("parts", left).mkdir()
    monkeypatch.setattr(tuning, "run_process", in_this_process)
    assert outcome(search("parts", 4)) == outcome(whole)
    assert [path.name for path in Path("parts").glob("trial-*")] == ["trial-0001-kept"]
    monkeypatch.setattr(tuning, "run_process", None)  # nothing is left to do
    assert outcome(search("parts", 4)) == outcome(whole)


def test_trials_side_by_side_are_as_many_as_asked_for():
    space = Space(METHOD_NAMES, FIXED)
    study = tune(space, load_corpus("text.txt"), Path("study"), 3, jobs=2, report=lambda line: None)
    assert [trial.number for trial in study.optuna.trials] == [0, 1, 2] and len(study.ended()) == 3


def test_a_trial_that_diverges_is_a_failed_trial(monkeypatch):
    step = TrainingStep.__call__

    def diverging(self, *batch):
        if self.trainer.learning_rate > 0.001:
            raise Diverged("the gradient is not finite")
        return step(self, *batch)

    monkeypatch.setattr(TrainingStep, "__call__", diverging)
    study = search("study", 4, epochs=1)
    for trial in study.ended():
        assert (trial.state == optuna.trial.TrialState.FAIL) == (trial.params["learning_rate"] > 0.001)
    assert list(study.table()["status"][[0, 3]]) == ["finished", "diverged"]


def test_a_trial_without_a_result_ends_the_search_and_is_tried_again(monkeypatch):
    monkeypatch.setattr(tuning, "run_process", lambda job, say, *rest: say("noisin: error: no room") or 2)
    with pytest.raises(UserError, match="trial 0 ended without a result: noisin: error: no room"):
        search("study", 1)
    monkeypatch.setattr(tuning, "run_process", in_this_process)
    assert [trial.number for trial in search("study", 1).ended()] == [0]


def test_importances_find_the_option_that_matters(monkeypatch, drawn):
    monkeypatch.setattr(tuning, "run_process", lambda *rest: 0)
    monkeypatch.setattr(tuning, "Progress", lambda: Progress(valid_ppl=2.0))
    monkeypatch.setattr(tuning, "best_valid", lambda trial: 1 + abs(math.log(trial.params["gamma"] / 0.2)))
    study = search("study", 20, ["noisin"])
    shares = study.importances()["noisin"]
    assert sum(shares.values()) == pytest.approx(1) and max(shares, key=shares.get) == "gamma"
    assert Path("study/importances.png").read_bytes()[:4] == b"\x89PNG"
    (axes,) = drawn[0].axes
    ordered = [name.replace("_", " ") for name in sorted(shares, key=shares.get)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ordered


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--trials 0", "0 is not a positive whole number"),
        ("--jobs 0", "0 is not a positive whole number"),
        ("--methods noise", "argument --methods: 'noise' is unknown: it must be of none, dropout"),
        ("--methods ,", "nothing is named"),
        ("--methods none --gamma 0.3", "--gamma has no effect with --method none; remove it"),
        ("--methods noisin,none --learning-rate 0.01", "with --method none every searched option is fixed"),
        ("--noise cauchy", "invalid choice: 'cauchy'"),
        ("--noise-mode sideways", "invalid choice: 'sideways'"),
        ("--noise-parameters k=2", "needs --noise, because each family has its own"),
        ("--noise gaussian --noise-parameters k=2", "noise family 'gaussian' has no parameter 'k'"),
        ("--methods noisin* --lower-bound 2", "error: --gamma starts at 1.0 with --lower-bound 2.0"),
        ("--learning-rate 1 --hidden 0", "argument --hidden: '0' is invalid: it must be from 1"),
        ("--corpus nowhere.txt", "nowhere.txt: no such corpus or file"),
        ("--corpus text.txt --batch-size 5000", "lower the batch size"),
        ("--device tpu", "--device tpu is unknown"),
        ("--trails 3", "--trails is not an option; did you mean --trials?"),
        (f"--corpus text.txt --batch-size 2 --study {300 * 'x'}", "File name too long"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, says):
    assert says in refused(capsys, "tune", *arguments.split())
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


def test_without_optuna_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "noisin.tuning")
    assert "needs Optuna" in refused(capsys, "tune")


def test_a_study_of_other_options_or_another_text_is_refused(capsys):
    search("study", 1, epochs=1)
    known = [*OPTIONS, "--epochs", "1", "--study", "study", "--trials", "1", "--methods", ",".join(METHOD_NAMES)]
    assert "hidden was 4, is 5" in refused(capsys, "tune", *known, "--hidden", "5")
    assert "methods was ['noisin', 'dropout+noisin'], is ['noisin']" in refused(
        capsys, "tune", *known, "--methods", "noisin"
    )
    assert "gamma was " in refused(capsys, "tune", *known, "--gamma", "0.3")
    Path("text.txt").rename("moved.txt")
    assert main(["tune", *known, "--corpus", "moved.txt"]) == 0
    capsys.readouterr()
    Path("text.txt").write_text("six seven eight\n" * 200)
    assert "study holds another study (the text is another one)" in refused(capsys, "tune", *known)


@pytest.mark.parametrize(
    "old, new",
    [
        (b'{"op_code":', b'{"op_code'),
        (b'"op_code":4', b'"op_code":44'),
        (b'"study_id":0', b'"study_id":7'),
        (b'"values":[', b'"values":[-'),
        (b'"param_value_internal":0.', b'"param_value_internal":9999.'),
        (b'"param_name":"method"', b'"param_name":"hidden"'),
        (b'"identity"', b'"another"'),
        (b'low\\": 0.0003', b'low\\": 0.0002'),
        (b'"values":[', b'"values":[1e400,'),
    ],
)
def test_a_damaged_study_is_refused_in_one_line(capsys, old, new):
    journal = Path("study/study.jsonl")
    search("study", 1, epochs=1)
    content = journal.read_bytes()
    assert old in content
    journal.write_bytes(b"".join(sealed_anew(line) + b"\n" for line in content.replace(old, new).splitlines()))
    known = [*OPTIONS, "--epochs", "1", "--study", "study", "--trials", "1", "--methods", ",".join(METHOD_NAMES)]
    said = refused(capsys, "tune", *known)
    assert "study/study.jsonl is damaged (" in said and said.endswith("or delete it to begin the study again\n")


@pytest.mark.parametrize("old, new", [(b'"values":[', b'"values":[1'), (b'_internal":0.0', b'_internal":0.1')])
def test_a_digit_that_was_changed_in_the_journal_is_damage(capsys, old, new):
    search("study", 1, epochs=1)
    journal = Path("study/study.jsonl")
    journal.write_bytes(journal.read_bytes().replace(old, new, 1))
    known = [*OPTIONS, "--epochs", "1", "--study", "study", "--trials", "1", "--methods", ",".join(METHOD_NAMES)]
    assert re.search(r"is damaged \(line \d+ has changed since it was written\)", refused(capsys, "tune", *known))


def test_a_torn_last_line_of_the_journal_is_cut_off():
    before = search("study", 2, epochs=1)
    with open("study/study.jsonl", "ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert outcome(search("study", 2, epochs=1)) == outcome(before)
    assert len(search("study", 3, epochs=1).ended()) == 3


def test_a_lock_that_a_killed_search_left_does_not_stop_the_next_one():
    before = search("study", 1, epochs=1)
    os.symlink("study/study.jsonl", "study/study.jsonl.lock")  # as Optuna does; from inside the folder it leads nowhere
    assert outcome(search("study", 1, epochs=1)) == outcome(before)


def test_an_interrupted_trial_with_a_damaged_state_goes_on_from_the_one_before(monkeypatch):
    expected = outcome(search("whole", 1, ["noisin"]))

    def stop(job, say, unwanted, options):
        return in_this_process(job, say, lambda: Path(job.directory, "state-before.json").exists(), options)

    monkeypatch.setattr(tuning, "run_process", stop)
    with pytest.raises(UserError, match="ended without a result"):
        search("study", 1, ["noisin"])
    Path("study/trial-0000/state.json").write_text("{")
    monkeypatch.setattr(tuning, "run_process", in_this_process)
    assert outcome(search("study", 1, ["noisin"])) == expected


def test_a_folder_of_something_else_is_no_study(capsys):
    Path("runs", "one").mkdir(parents=True)
    assert "runs holds no study, but one: give a new folder" in refused(capsys, "tune", *OPTIONS, "--study", "runs")
    assert [path.name for path in Path("runs").iterdir()] == ["one"]


def test_two_searches_in_one_study_are_refused():
    with tuning.hold_folder(Path("study")), pytest.raises(UserError, match="study is in use by process"):
        search("study", 1)


def test_the_printed_command_trains_the_best_trial(capsys, monkeypatch):
    """With processes."""
    monkeypatch.setattr(tuning, "run_process", process.run_process)
    options = [*OPTIONS, "--epochs", "2", "--device", "cpu"]
    assert main(["tune", *options, "--trials", "2", "--jobs", "2", "--methods", "noisin"]) == 0
    output = capsys.readouterr().out
    (folder,) = Path("runs/tune").iterdir()
    study = Study(folder, Space(["noisin"], {**FIXED, "epochs": 2}), load_corpus("text.txt"))
    assert len(study.ended()) == 2 and not list(folder.glob("trial-*"))
    assert f"study {folder}\n" in output and "| trial   | valid" in output
    command = shlex.split(output.splitlines()[-1])
    assert command[:4] == ["noisin", "train", "--device", "cpu"]
    assert main([*command[1:], "--run-dir", "run", "--quiet"]) == 0
    assert read_record(Path("run/record.json"))["valid_ppl"] == study.best().value
