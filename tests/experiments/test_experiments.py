"""The experiments and their runner: what is declared, run once, resumed, tabulated and drawn."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.machine import needs_matplotlib
from helpers.processes import ROOT
from helpers.records import make_up_record
from matplotlib.image import imread
from tqdm import tqdm

from experiments.__main__ import _parser, main
from experiments.catalogue import (
    ANNEALING,
    DEMO,
    EXPERIMENTS,
    FIGURE2,
    GAMMA,
    ICML,
    LOWER_BOUND,
    OBJECTIVE,
    RATES,
    TABLE2,
    TABLE3,
    ZAREMBA,
    Case,
)
from experiments.grid import engines, runner
from experiments.grid.engines import local_engine
from experiments.grid.runner import run_grid
from experiments.records import RESULTS, draw, find_record, load_records
from experiments.report.build import draw_tests
from experiments.report.page import table_row
from experiments.report.readme import SECTIONS, begun, split_page
from experiments.report.runs import candidates, choose, load_runs, run_of, runs_of, variant_of
from experiments.report.tables import Line, cells, exact, frame, lines
from noisin.config import Config, config_from_dict
from noisin.figures import figure2, save, validation_panels
from noisin.methods import METHODS
from noisin.runs.formats import seal
from noisin.runs.record import read_record, write_record
from noisin.system.errors import UserError
from noisin.system.files import hold_folder
from noisin.system.process import Job, run
from noisin.tables import markdown

COMMITTED = sorted(RESULTS.glob("*/*.json"))


def command(*arguments, cwd):
    """`python -m experiments ...` in the folder `cwd`, on one thread."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # an interruption reaches the runner and its runs, as from a terminal
    )


def record_of(config, valid=50.0, **changes):
    """A record as a run would write it, with made-up numbers."""
    gamma = config.gamma if "noisin" in config.method else []
    rates = {"seconds": 1.0, "tokens_per_second": 9.0, "gamma": gamma}
    epochs = [{"epoch": n, "train_ppl": 90.0 / n, "valid_ppl": 2 * valid / n, **rates} for n in (1, 2)]
    test_ppl = {"clean": 51.26, "bound": 53.0, "averaged": 52.34, "samples": 10}
    return {**make_up_record(config, epochs, 2, test_ppl), **changes}


def test_the_experiments_say_what_the_paper_says():
    for config in FIGURE2.configs():
        assert (config.corpus, config.cell, config.activation, config.layers) == ("ptb", "rnn", "sigmoid", 1)
        assert (config.hidden, config.optimizer, config.learning_rate, config.decay) == (256, "adam", 0.001, 1.0)
    for config in TABLE3.configs():
        assert (config.corpus, config.batch_size, config.lower_bound) == ("wikitext-2", 32, 0.1)
    for config in ZAREMBA.configs():  # the small network of Zaremba et al. (2014)
        assert (config.corpus, config.batch_size, config.unroll) == ("ptb", 20, 20)
    assert [case.paper for case in ZAREMBA.cases] == [{"none": 114.5}]
    for config in TABLE3.configs() + ZAREMBA.configs():
        assert (config.cell, config.layers, config.hidden, config.clip) == ("lstm", 2, 200, 5.0)
        assert (config.optimizer, config.learning_rate, config.decay, config.decay_after) == ("sgd", 1.0, 0.5, 4)
        assert (config.epochs, config.recurrent_init, config.init_scale, config.forget_bias) == (13, "uniform", 0.1, 0)
    for experiment in (DEMO, FIGURE2, TABLE2, TABLE3):
        assert {config.method for config in experiment.configs()} == set(TABLE2.methods)
        assert {config.dtype for config in experiment.configs()} == {"float32"}


def test_seeds_and_methods_are_taken_once_each():
    arguments = _parser().parse_args(["demo", "--seeds", "1,01 2", "--methods", "none,none"])
    assert (arguments.seeds, arguments.methods) == ([1, 2], ["none"])


def test_runs_of_one_seed_count_once_whatever_their_dtypes():
    runs = []
    for seed, dtype, clean in ((1, "float32", 50.0), (1, "bfloat16", 51.0), (2, "float32", 54.5)):
        (config,) = FIGURE2.configs(["none"], [seed], dtype=dtype)
        record = record_of(config)
        runs.append(run_of({**record, "test_ppl": {**record["test_ppl"], "clean": clean}}))
    score = choose(runs, "none")
    assert score.seeds == 2 and len(score.runs) == 3
    assert score.test("clean") == pytest.approx((50.5 + 54.5) / 2)
    assert score.deviation("clean") == pytest.approx(4 / math.sqrt(2))


def test_a_grid_begins_with_what_no_other_one_trains(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(engines, "run", lambda job, *_: begun.append(Path(job.directory).name))
    jobs = {name: Job(str(tmp_path / name), str(tmp_path), "cpu", {}) for name in "abcd"}
    with hold_folder(tmp_path / "a"), hold_folder(tmp_path / "c"):
        assert sorted(name for name, _ in local_engine(1)(jobs, print)) == list("abcd")
    assert begun == list("bdac")


def test_two_grids_at_once_share_their_work(tmp_path):
    arguments = ("demo", "--epochs", "1", "--methods", "none,noisin", "--jobs", "1")
    both = [command(*arguments, cwd=tmp_path) for _ in range(2)]
    tables = []
    for process in both:
        output, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
        tables.append(output[output.index("| method") :])
    assert tables[0] == tables[1]
    runs = [path.read_text(encoding="utf-8") for path in tmp_path.glob("runs/demo/*/metrics.jsonl")]
    assert len(runs) == 2 and all(text.count("\n") == 1 for text in runs)


def test_a_run_that_failed_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run_grid(configs, *_):
        return [record_of(configs[0])], ["a", "b", "c"]

    monkeypatch.setattr("experiments.__main__.run_grid", run_grid)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert re.search(r"^\| None .*51\.3", captured.out, re.MULTILINE)
    assert captured.err.startswith("experiments: error: 3 of 4 runs failed: a, b, c; the same command")


def test_what_has_its_records_needs_no_corpus(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.__main__.load_corpus", None)
    assert main(["figure2", "--dtype", "bfloat16"]) == 0
    output = capsys.readouterr().out
    assert "4 of 4 runs have their record" in output and "166.0" in output


def test_a_dtype_that_the_processor_lacks_is_said_once_and_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("noisin.system.device.processor_features", lambda: {"avx2"})
    assert main(["demo", "--dtype", "bfloat16", "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("experiments: error: dtype is 'bfloat16'") and captured.err.count("\n") == 1
    assert "float32" in captured.err and captured.out == ""


def test_a_run_that_cannot_be_started_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "options.json").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone" / "python"))
    said = []
    assert run(Job(str(tmp_path), str(tmp_path), "cpu", {}), said.append) is None
    assert said == [f"given up: cannot start {tmp_path / 'gone' / 'python'}: No such file or directory"]


def test_a_run_that_diverged_is_a_result_of_the_grid(tmp_path):
    config = Config(optimizer="sgd", learning_rate=1000.0, activation="relu", clip=1e6, hidden=8, epochs=1)
    (record,), failed = run_grid([config], tmp_path / "runs", tmp_path / "results", local_engine())
    assert failed == []
    assert record["status"] == "diverged" and load_records(tmp_path / "results") == [record]


def standing_in(monkeypatch, folder, script):
    """A job whose run is this shell script."""
    (folder / "options.json").touch()
    (folder / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return Job(str(folder), str(folder), "cpu", {})


@pytest.mark.parametrize(
    "number, name", [(9, "Killed (out of memory?)"), (11, "Segmentation fault"), (40, "Real-time signal 6")]
)
def test_a_run_that_a_signal_ends_says_so(tmp_path, monkeypatch, number, name):
    said = []
    job = standing_in(monkeypatch, tmp_path, f"echo begun; kill -{number} $$")
    assert run(job, said.append) is None
    assert said == ["begun", f"given up: ended by signal {number}, {name}"]
    said.clear()
    assert run(job, said.append, unwanted=lambda: True) is None and said == []


def test_a_run_whose_lines_nobody_hears_is_stopped(tmp_path, monkeypatch):
    def say(line):
        raise BrokenPipeError(32, "Broken pipe")

    job = standing_in(monkeypatch, tmp_path, "echo $$ > pid; while :; do echo line; sleep 0.1; done")
    with pytest.raises(BrokenPipeError):
        run(job, say)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_run_that_the_engine_never_names_has_failed(tmp_path):
    def engine(work, relay):
        yield from ()

    config = DEMO.configs(["none"])[0]
    assert run_grid([config], tmp_path / "runs", tmp_path / "results", engine) == ([], [config.name])


def test_narrowing_chooses_methods_seeds_and_epochs():
    configs = DEMO.configs(["noisin*", "none"], [3, 4], epochs=2)
    assert [(config.method, config.seed) for config in configs] == [
        ("noisin*", 3),
        ("none", 3),
        ("noisin*", 4),
        ("none", 4),
    ]
    assert {config.epochs for config in configs} == {2}
    with pytest.raises(UserError, match="method is 'nosin'"):
        DEMO.configs(["nosin"])


def test_only_the_runs_with_these_options_are_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr("experiments.__main__.run_grid", lambda configs, *_: taken.extend(configs) or ([], []))
    assert main(["table2", "--only", "layers=2,activation=tanh", "--methods", "none,noisin*"]) == 0
    expected = [(2, "tanh", "none"), (2, "tanh", "noisin*")]
    assert [(config.layers, config.activation, config.method) for config in taken] == expected
    taken.clear()
    assert main(["gamma", "--only", "gamma=0.4,layers=1", "--seeds", "2,3"]) == 0
    assert [(config.gamma, config.layers, config.seed) for config in taken] == [([0.4], 1, 2), ([0.4], 1, 3)]
    taken.clear()
    assert main(["figure2", "--only", "gamma=0.2"]) == 0  # None's gamma is 0.2 too: by default, and without effect
    assert [config.method for config in taken] == ["noisin"]


def test_a_record_is_found_by_its_configuration_whatever_options_are_new():
    config = Config(method="noisin", gamma=[0.2])
    old = record_of(config)
    del old["config"]["forget_bias"]  # as if written before that option was there
    assert find_record([record_of(Config()), old], config) is old
    assert find_record([old], Config(method="noisin", gamma=[0.3])) is None


def test_the_table_sets_ours_beside_the_papers():
    records = [record_of(config) for config in reversed(FIGURE2.configs())]
    records[0]["test_ppl"] = None
    records[0]["status"] = "diverged"
    table = frame(FIGURE2, lines(FIGURE2, [run_of(record) for record in records]))
    assert list(table["method"]) == ["None", "Dropout", "NOISIN", "NOISIN*"]
    assert list(table["published"]) == ["157.4", "146.9", "166.0", "144.7"]
    assert list(table["test clean"]) == ["51.3", "51.3", "51.3", "-"]
    assert list(table["test averaged"]) == ["52.3", "52.3", "52.3", "-"]
    rows = markdown(table).splitlines()
    assert len(rows) == 6 and len({len(row) for row in rows}) == 1
    assert re.match(r"\| method +\| gamma +\| seed", rows[0]) and set(rows[1]) == set("|:-")


def test_table2_has_the_24_rows_of_the_paper_and_says_which_are_missing():
    configs = TABLE2.configs()
    assert len({config.digest for config in configs}) == 24
    assert {config.digest for config in FIGURE2.configs()} < {config.digest for config in configs}
    records = [record_of(config) for config in configs if (config.layers, config.activation) == (2, "relu")]
    table = frame(TABLE2, lines(TABLE2, [run_of(record) for record in records[:2]]))
    assert len(table) == 24
    assert list(table["status"]).count("not run yet") == 22
    row = table[(table.layers == "2") & (table.activation == "relu") & (table.method == "Dropout")].iloc[0]
    assert (row["test clean"], row["published"], row["status"]) == ("51.3", "168.5", "early-stopped")
    published = {(row.layers, row.activation, row.method): row.published for row in table.itertuples()}
    in_its_order = """131.9 140.9 138.3 141.4  140.5 142.4 165.2 157.9  166.0 144.7 146.9 157.4
        196.8 154.3 152.2 164.4  158.4 149.2 169.8 175.3  171.0 165.9 168.5 165.0""".split()
    rows = itertools.product(("tanh", "sigmoid", "relu"), "12", ("NOISIN", "NOISIN*", "Dropout", "None"))
    assert published == {(layers, name, method): paper for (name, layers, method), paper in zip(rows, in_its_order)}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_tables_and_curves_tell_all_variants_of_a_method_apart(experiment):
    for case in experiment.cases:
        found = [config for config in experiment.shown_configs() if case.covers(config)]
        for one, two in itertools.combinations(found, 2):
            if one.method == two.method:
                method = METHODS[one.method]
                assert method.described(one) != method.described(two)
                rows = [cells(Line(case, one.method, rivals=True, config=config)) for config in (one, two)]
                assert rows[0] != rows[1]


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_each_of_several_cases_has_a_title_of_its_own_in_words(experiment):
    titles = [case.title for case in experiment.cases]
    assert len(set(titles)) == len(titles) and "_" not in "".join(titles)
    assert len(titles) == 1 or all(titles)


def test_an_option_that_does_not_act_makes_no_other_run():
    noises = [Case({"noise": name}) for name in ("gaussian", "laplace")]
    experiment = dataclasses.replace(FIGURE2, cases=noises)
    assert [config.noise for config in experiment.configs(["noisin"])] == ["gaussian", "laplace"]
    (none,) = experiment.configs(["none"])  # without noise there is one network
    run = run_of(record_of(none))
    assert [line.run for line in lines(experiment, [run]) if line.method == "none"] == [run, run]
    assert not any(line.rivals for line in lines(experiment, [run]))


def test_a_variant_that_has_not_run_is_shown_as_missing():
    runs = [run_of(record_of(config)) for config in GAMMA.configs() if config.gamma != [0.4] or config.layers == 1]
    table = frame(GAMMA, lines(GAMMA, runs))
    assert list(table["status"]) == [*["early-stopped"] * 5, "not run yet"] + ["early-stopped"] * 2 + ["not run yet"]
    missing = table[table["status"] == "not run yet"]
    assert list(missing["gamma"]) == ["0.400, 0.400"] * 2 and list(missing["chosen"]) == ["-"] * 2
    assert list(table["chosen"]) == ["yes", "no", "no", *2 * ["so far", "no", "-"]]
    assert list(exact(lines(GAMMA, runs))["chosen"].fillna("")) == ["yes", "no", "no", *2 * ["so far", "no", ""]]
    assert list(exact(lines(GAMMA, runs))["gamma"])[-1] == "0.4 0.4"
    assert len(frame(GAMMA, lines(GAMMA, []))) == 9


@pytest.mark.parametrize(
    "arguments, tried, chosen",
    [
        (["--only", "gamma=0.4,layers=1"], (0.1, 0.2, 0.4), {"0.400": "no"}),  # what others validate is on record
        (["--only", "gamma=0.2,layers=1"], (0.1, 0.2, 0.4), {"0.200": "yes"}),
        (["--only", "gamma=0.2,layers=1"], (0.2, 0.4), {"0.200": "so far"}),
    ],
)
def test_a_command_for_some_variants_says_what_is_chosen_of_all(
    tmp_path, monkeypatch, capsys, arguments, tried, chosen
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.__main__.RESULTS", tmp_path / "results")
    for config in GAMMA.configs():
        (gamma,) = config.gamma
        if config.layers == 1 and gamma in tried:
            record = record_of(config, valid=130 + abs(gamma - 0.2))
            write_record(tmp_path / "results" / "gamma" / f"{config.name}.json", seal(record))
    assert main(["gamma", *arguments]) == 0
    rows = [
        list(map(str.strip, row.split("|")[1:-1])) for row in capsys.readouterr().out.splitlines() if row[:1] == "|"
    ]
    heads, shown = rows[0], rows[2:]
    assert {row[heads.index("gamma")]: row[heads.index("chosen")] for row in shown} == chosen


def test_table2_is_drawn_with_a_panel_a_case(tmp_path):
    figure = draw(TABLE2, [record_of(config) for config in TABLE2.configs()[:6]])
    assert [axes.get_title() for axes in figure.axes] == ["1-layer sigmoid RNN", "1-layer tanh RNN"]  # which have run
    save(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_of_any_dtype_are_one_entry_of_the_legend_and_keep_its_marker():
    several = [
        record_of(GAMMA.configs(seeds=[seed], dtype=dtype)[0]) for seed, dtype in ((1, "bfloat16"), (2, "float32"))
    ]
    alone = record_of(GAMMA.configs()[1])
    figure = validation_panels({"panel": [*several, alone], "other": several[:1]})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["NOISIN γ 0.1", "NOISIN γ 0.2", "best epoch"]
    assert legend.get_title().get_text() == "one line for each seed"
    assert [line.get_marker() for line in legend.get_lines()] == ["^", "^", "*"]
    markers = [[line.get_marker() for line in axes.get_lines()] for axes in figure.axes]
    assert markers == [["^", "*", "^", "*", "^", "*"], ["^", "*"]]
    assert len({line.get_color() for line in figure.axes[0].get_lines()[0:4:2]}) == 1  # as the legend has it


def test_an_experiment_finds_its_runs_among_those_of_another(tmp_path):
    (tmp_path / "figure2").mkdir()
    own = FIGURE2.configs(["none"], [5], dtype="bfloat16")[0]
    for name, config in (("own", own), ("other", Config(**{**own.to_dict(), "hidden": 7}))):
        write_record(tmp_path / "figure2" / f"{name}.json", seal(record_of(config)))
    for experiment in (FIGURE2, TABLE2):
        assert [run.config.hidden for run in runs_of(experiment, load_runs(tmp_path))] == [256]
    assert runs_of(TABLE3, load_runs(tmp_path)) == []


def test_epochs_of_an_earlier_command_say_nothing_of_this_ones_speed(monkeypatch):
    class Shown(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})

    monkeypatch.setattr(runner, "tqdm", Shown)
    view = runner._View({"run": Config(epochs=4)})
    for line, done, earlier in (("resuming after epoch 2", 0.5, 0.5), ("epoch   3  train  9.0", 0.75, 0.5)):
        view.relay("run", line)
        assert (view.bar.n, view.bar.initial) == (done, earlier)


def test_the_figure_is_a_picture_of_the_records_and_can_be_restyled(tmp_path):
    records = [record_of(config) for config in FIGURE2.configs()]
    figure = figure2(records, "Title", floor=17.0)
    figure.set_size_inches(4, 3)
    save(figure, tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").shape[:2] == (450, 600)  # at 150 dots per inch
    validation, training = figure.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in training.get_lines()}
    assert curves["None"] == [90.0, 45.0] and curves["NOISIN"] == [90.0, 45.0]
    assert [100.0, 50.0] in [list(line.get_ydata()) for line in validation.get_lines()]
    assert [50.0] in [list(line.get_ydata()) for line in validation.get_lines()]  # the best epoch's star
    assert validation.get_ylabel() and validation.get_xlabel() and training.get_xlabel()
    (said,), (crossed,) = validation.texts, figure2(records, floor=60.0).axes[1].texts
    assert said.get_text() == "text's source: 17.00" and (said.get_va(), crossed.get_va()) == ("baseline", "top")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_record_holds_together(path):
    record = read_record(path)
    if record["status"] == "early-stopped":
        assert len(record["epochs"]) - record["best_epoch"] == record["config"]["patience"]
    assert (
        record["git"] and "+" not in record["git"]
    )  # made by code that is committed, from the first epoch to the last


@pytest.mark.parametrize("name", SECTIONS)
def test_the_sections_of_the_readme_are_those_of_the_records(name):
    _, section, _ = split_page(name)
    assert section == SECTIONS[name][1]()


def test_bold_is_what_luck_may_have_kept_from_being_the_best():
    """3 % is more than two standard errors of any difference between dropout and NOISIN."""
    for line in split_page("glance")[1].splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        found = {cell: float(re.search(r"[\d.]+", cell)[0]) for cell in cells}
        best = min(found.values())
        bold = {cell for cell in found if cell.startswith("**")}
        assert {cell for cell, value in found.items() if value == best} <= bold
        assert not {cell for cell in bold if found[cell] > 1.03 * best}


def test_the_pages_numbers_with_a_decaying_rate_are_those_of_the_records():
    page, runs = (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), load_runs()
    for title, decay, estimator in (
        ("constant rate, noise off", 1.0, "clean"),
        ("constant rate, averaged (limit)", 1.0, "limit"),
        ("decaying rate, noise off", 0.7, "clean"),
        ("decaying rate, averaged (limit)", 0.7, "limit"),
    ):
        tests = []
        for config in ANNEALING.configs(["none", "dropout", "noisin"], dtype="bfloat16", decay=decay, patience=6):
            (run,) = (run for run in runs if run.config in (config, dataclasses.replace(config, patience=3)))
            tests.append(run.shown(estimator))
        assert f"| {title} | {' | '.join(tests)} |" in page


def test_the_pages_numbers_with_strong_noise_are_those_of_the_records():
    page, runs = (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), load_runs()
    methods = ["none", "dropout", "standard-dropout", "noisin", "dropout+noisin"]
    configs = [ICML.configs([method], dtype="bfloat16")[0] for method in methods]
    found = [next(run for run in runs if run.variant == variant_of(config)) for config in configs]
    for title, value in (
        ("test, noise off", lambda run: run.test("clean")),
        ("test, averaged (limit)", lambda run: run.test("limit")),
        ("validation, noise off", lambda run: run.valid),
        ("training, noise on", lambda run: run.epochs[-1]["train_ppl"]),
    ):
        assert f"| {title} | {' | '.join(f'{value(run):.1f}' for run in found)} |" in page


def test_the_pages_numbers_of_the_families_are_those_of_the_records():
    page, runs = (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), load_runs()
    variants = [variant_of(config) for config in ICML.configs(["noisin"], dtype="bfloat16") if config.gamma == [0.5]]
    found = [run for variant in variants for run in runs if run.variant == variant]
    names = [run.config.noise.replace("_", "-").capitalize() for run in found]
    assert f"| NOISIN, multiplicative, 0.5 | {' | '.join(names)} |" in page
    for title, value in (
        ("test, noise off", lambda run: run.test("clean")),
        ("test, averaged (limit)", lambda run: run.test("limit")),
        ("validation, noise off", lambda run: run.valid),
    ):
        assert f"\n| {title} | {' | '.join(f'{value(run):.1f}' for run in found)} |\n" in page


def test_the_pages_numbers_of_the_tighter_objective_are_those_of_the_records():
    page, runs = (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), load_runs()
    configs = OBJECTIVE.configs(["none"]) + OBJECTIVE.configs(["noisin*"])
    none, one, ten = (next(run for run in runs if run.variant == variant_of(config)) for config in configs)
    gammas = [[epoch["gamma"][0] for epoch in run.epochs] for run in (one, ten)]
    assert all(map(operator.lt, *gammas)), "gamma is higher after every epoch"
    for epoch in (1, 8, 11):
        row = " | ".join(f"{gamma[epoch - 1]:.3f}" for gamma in gammas)
        assert f"| gamma after epoch {epoch} | | {row} |" in page
    for title, value in (
        ("best validation perplexity", lambda run: run.valid),
        ("test, noise off", lambda run: run.test("clean")),
        ("test, averaged (limit)", lambda run: run.test("limit")),
    ):
        assert f"| {title} | {' | '.join(f'{value(run):.1f}' for run in (none, one, ten))} |" in page
    smaller, larger = (f"{100 * (1 - run.test('clean') / none.test('clean')):.2f} %" for run in (ten, one))
    assert f"{smaller} instead of {larger} with the noise off" in page


def test_bfloat16_leaves_perplexity_where_it_was_and_the_page_says_by_how_little():
    page = SECTIONS["speed"][0].read_text(encoding="utf-8")
    compared = 0
    for path in (RESULTS / "dtype").glob("*.json"):
        single = json.loads(path.read_text(encoding="utf-8"))
        config = {**single["config"], "dtype": "bfloat16", "epochs": 40}
        half = find_record(load_records(RESULTS / "figure2"), config_from_dict(config))
        ours, theirs = (record["epochs"][2]["valid_ppl"] for record in (half, single))
        assert abs(ours / theirs - 1) < 0.005
        assert f"| {theirs:.2f} | {ours:.2f} |" in page
        compared += 1
    assert compared == 2


def test_our_test_perplexities_are_drawn_beside_the_papers():
    first, second, lost = (
        run_of({**record_of(config), "test_ppl": test})
        for config, test in (
            (TABLE2.configs(["none"])[0], {"clean": 120.5, "averaged_limit": 120.5}),
            (TABLE2.configs(["noisin"])[1], {"clean": 130.25, "averaged_limit": 129.75}),
            (TABLE2.configs(["noisin*"])[1], {"clean": None, "averaged_limit": 128.5}),  # not finite
        )
    )
    figure = draw_tests(TABLE2, [first, second, lost])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["None", "Dropout", "NOISIN", "NOISIN*"]
    for axes, case in zip(figure.axes, TABLE2.cases):
        points = [(line.get_marker(), *line.get_xydata()[0]) for line in axes.get_lines()]
        paper = [(value, height) for marker, value, height in points if marker == "x"]
        assert paper == [(case.paper[method], height) for height, method in enumerate(TABLE2.methods)]
    ours = [
        {
            (value, height)
            for marker, value, height in ((line.get_marker(), *line.get_xydata()[0]) for line in axes.get_lines())
            if marker != "x"
        }
        for axes in figure.axes
    ]
    assert ours == [{(120.5, 0)}, {(130.25, 2), (129.75, 2), (128.5, 3)}]  # nothing has run of the other cases
    missing = [sum(text.get_text() == "not run yet" for text in axes.texts) for axes in figure.axes]
    assert missing == [3, 2]
    gone = record_of(TABLE2.configs(["none"])[0], epochs=[], best_epoch=None, valid_ppl=None, test_ppl=None)
    (text, *_) = draw_tests(TABLE2, [run_of({**gone, "status": "diverged"})]).axes[0].texts
    assert text.get_text() == "diverged"
    four = draw_tests(TABLE2, [run_of(record_of(config)) for config in TABLE2.configs(["none"])[:4]]).axes
    assert [axes.xaxis.get_major_ticks()[0].label1.get_visible() for axes in four] == [False, True, True, True]
    figure = draw_tests(ZAREMBA, [run_of(record_of(ZAREMBA.configs(["none"])[0]))])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["None"]  # of the others there is nothing to show


def test_every_variant_has_a_row_of_test_perplexities_where_nothing_was_published():
    configs = [*ICML.configs(["none"]), *ICML.configs(["noisin"])[:2], *ICML.configs(["noisin"], [2])[:1]]
    runs = [
        run_of({**record_of(config), "test_ppl": {"clean": 100.0 + index, "averaged_limit": 90.0 + index}})
        for index, config in enumerate(configs)
    ]
    (axes,) = draw_tests(ICML, runs).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["None", "NOISIN γ 0.5 multiplicative gaussian", "NOISIN γ 1 multiplicative gaussian"]
    points = [tuple(line.get_xydata()[0]) for line in axes.get_lines()]
    assert sorted(points) == [(90, 0), (91, 1), (92, 2), (93, 1), (100, 0), (101, 1), (102, 2), (103, 1)]


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_last_epoch_of_every_seed_has_a_marker(epochs):
    records = [record_of(config) for config in FIGURE2.configs(["none"], range(9))]
    records = [{**one, "epochs": one["epochs"][:epochs], "best_epoch": 1, "valid_ppl": 100.0} for one in records]
    lines = figure2(records).axes[1].get_lines()
    assert len(lines) == 9 and all(line.get_markevery()[-1] == epochs - 1 for line in lines)


def test_one_gamma_looks_the_same_in_figures_that_stand_side_by_side():
    records = [record_of(config) for config in GAMMA.configs()[:3]]
    first, second = (figure2(shown, compared_with=records).axes[0] for shown in (records, records[1:]))
    for alone, beside in zip(second.get_lines(), first.get_lines()[2:]):
        assert alone.get_color() == beside.get_color() and alone.get_linestyle() == beside.get_linestyle()
    assert len({line.get_color() for line in first.get_lines() if line.get_marker() != "*"}) == 3


@needs_matplotlib
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_figure_of_an_experiment_is_of_its_records(tmp_path, experiment):
    runs, of_its_own = load_runs(), experiment in begun(load_runs())
    records = [run.record for run in runs_of(experiment, runs)]
    figures = {"curves.png": lambda: draw(experiment, records), "test.png": lambda: draw_tests(experiment, runs)}
    for name, make in figures.items():
        committed = RESULTS / experiment.name / name
        assert committed.exists() == of_its_own
        if of_its_own:
            save(make(), tmp_path / name)
            np.testing.assert_array_equal(imread(tmp_path / name), imread(committed))


def test_a_short_comparison_ends_with_a_table_and_is_not_run_twice(tmp_path):
    arguments = ("demo", "--epochs", "1", "--methods", "none,noisin*", "--jobs", "2")
    process = command(*arguments, cwd=tmp_path)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert re.search(r"^    none 1  epoch   1  train", output, re.MULTILINE)
    assert re.search(r"^\| None .* \| finished \|$", output, re.MULTILINE)
    assert re.search(r"^\| NOISIN\* .* \| finished \|$", output, re.MULTILINE)
    assert "The source of the text has perplexity 17.24" in output
    assert (tmp_path / "runs" / "demo" / "curves.png").exists()
    start = time.monotonic()
    again = command(*arguments, cwd=tmp_path)
    repeated, _ = again.communicate(timeout=100)
    assert "2 of 2 runs have their record" in repeated and "epoch   1" not in repeated
    assert time.monotonic() - start < 60
    assert output[output.index("| method") :] == repeated[repeated.index("| method") :]


def test_an_interrupted_comparison_goes_on(tmp_path):
    arguments = ("demo", "--methods", "none", "--epochs", "8")
    process = command(*arguments, cwd=tmp_path)
    while not list(tmp_path.glob("runs/demo/*/state.json")):
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "experiments: interrupted; the same command goes on from the last finished epochs" in errors
    assert not list(tmp_path.glob("runs/demo/records/*.json"))
    again = command(*arguments, cwd=tmp_path)
    output, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert "resuming after epoch" in output and not re.search(r"^epoch +1 ", output, re.MULTILINE)
    assert len(list(tmp_path.glob("runs/demo/records/*.json"))) == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["demo", "--methods", "nosin"], "method is 'nosin'"),
        (["demo", "--only", "layers"], "'layers' is not NAME=VALUE"),
        (["demo", "--only", "layers=1,layers=2"], "layers is given twice"),
        (["demo", "--only", "gamma=0.3", "--methods", "none"], "no run has gamma=0.3: it acts in none"),
        (["demo", "--methods", ","], "nothing is named"),
        (["demo", "--seeds", ""], "nothing is named"),
        (["demo", "--scheduler", ""], "--scheduler is empty"),
        (["report", "--jobs", "2"], "--jobs is not an option"),
        (["demo", "--only", "layer=1"], "a run has no option layer: "),
        (["demo", "--only", "layers=1,hidden=65"], "no run has hidden=65: there is hidden=64"),
        (["gamma", "--only", "layers=2,gamma=3"], "no run has gamma=3: there is gamma=0.1, 0.2, 0.4"),
        (["demo", "--epochs", "0"], "0 is not a positive whole number"),
        (["demo", "--jobs", "x"], "'x' is not a whole number"),
        (["demo", "--seeds", "1,b"], "'b' is not a whole number"),
        (["demo", "--device", "gpu"], "gpu:0 cannot be used"),
        (["figure9"], "invalid choice: 'figure9'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch, arguments, says):
    from experiments.__main__ import main

    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    errors = capsys.readouterr().err
    assert status == 2 and says in errors and errors.count("\n") == 1


def test_dropouts_rates_are_told_apart_and_the_one_that_validates_best_is_marked():
    runs = [run_of(record_of(config)) for config in RATES.configs()[:3]]  # of the first case
    runs[1].record["valid_ppl"] = 10.0
    found = [line for line in lines(RATES, runs) if line.run]
    table = frame(RATES, found)
    assert list(table["rates: inputs, states, outputs, embedding"]) == [
        *("0.05, 0.05, 0.05, 0.025", "0.1, 0.1, 0.1, 0.05", "0.2, 0.2, 0.2, 0.1"),
    ]
    assert list(table["chosen"]) == ["no", "yes", "no"]
    assert list(exact(found)["rates"]) == ["0.05 0.05 0.05 0.025", "0.1 0.1 0.1 0.05", "0.2 0.2 0.2 0.1"]
    shown = [dict(table_row(line, published=True)[0].notes) for line in found]
    rates = "rates: inputs, states, outputs, embedding"
    assert [notes[rates] for notes in shown] == list(table[rates])


def test_lower_bounds_of_a_learned_gamma_are_told_apart_and_the_one_that_validates_best_is_marked():
    runs = [run_of(record_of(config)) for config in LOWER_BOUND.configs()]
    runs[1].record["valid_ppl"] = 10.0
    found = [line for line in lines(LOWER_BOUND, runs) if line.run]
    table = frame(LOWER_BOUND, found)
    assert list(table["lower bound"]) == ["0.1", "0.316"] and list(table["chosen"]) == ["no", "yes"]
    assert list(exact(found)["lower_bound"]) == [0.1, 0.316]
    assert ("lower bound", "0.316") in table_row(found[1], published=True)[0].notes
    assert choose(candidates(TABLE2, TABLE2.cases[4], runs), "noisin*").config.lower_bound == 0.316
    figure = draw(LOWER_BOUND, [run.record for run in runs])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "NOISIN* γ from 0.3",
        "NOISIN* γ from 0.5, bound 0.316",
    ]


def test_curves_of_one_method_can_be_told_apart_by_gamma_or_rates():
    configs = [*GAMMA.configs()[:3], *FIGURE2.configs(["none"]), *RATES.configs()[:3]]
    records = [record_of(config) for config in configs]
    records[3]["config"]["gamma"] = [0.7]  # which does not act
    validation, training = figure2(records, "Title").axes
    curves = {
        line.get_label(): (line.get_color(), line.get_markerfacecolor(), line.get_alpha())
        for line in training.get_lines()
    }
    assert list(curves) == [
        "None",
        *(f"Dropout rates {rates}" for rates in ("0.05, 0.05, 0.05, 0.025", "0.1, 0.1, 0.1, 0.05")),
        "Dropout rates 0.2, 0.2, 0.2, 0.1",
        *("NOISIN γ 0.1", "NOISIN γ 0.2", "NOISIN γ 0.4"),
    ]
    assert len(set(curves.values())) == 7
    nothing = {**records[3], "epochs": [], "best_epoch": None}
    figure = validation_panels({"panel": records, "not run": [], "none": [nothing], "fewer": records[2:4]}, "Title")
    assert [axes.get_title() for axes in figure.axes] == ["panel", "fewer"]
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (1, 2)  # no column is left empty
    looks = {(line.get_color(), line.get_markerfacecolor(), line.get_alpha()) for line in figure.axes[0].get_lines()}
    assert len({look for look in looks if look[0] == METHODS["noisin"].look[0]}) >= 3
    assert validation_panels({"alone": [nothing]}).axes  # a run that diverged at once
    # One legend for all panels, in each of which a label has the same look.
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*curves, "best epoch"]
    looks = [
        {
            line.get_label(): (line.get_color(), line.get_markerfacecolor(), line.get_alpha())
            for line in axes.get_lines()
        }
        for axes in figure.axes
    ]
    assert all(looks[0][label] == curves[label] == looks[1][label] for label in ("None", "NOISIN γ 0.4"))
