"""`noisin compare`: one's own runs in a table and a figure."""

from __future__ import annotations

import json
import shutil

import pytest
from matplotlib.image import imread

from noisin.commands.main import main
from noisin.runs.comparison import by_corpus, draw, labels
from noisin.runs.listing import read_run

QUICK = "--hidden 8 --batch-size 50 --epochs 2 --quiet"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with runs: none and noisin, tested; dropout, which is not; and one of another text."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "book.txt").write_text("a line of the book\n" * 500)
    for name, options in {
        "none": "",
        "noisin": "--method noisin --gamma 0.3 --hidden 12 --eval-particles 2",
        "dropout": "--method dropout --no-test",
        "other": f"--corpus {folder / 'book.txt'} --batch-size 2",
    }.items():
        assert main(["train", "--run-dir", str(folder / name), *QUICK.split(), *options.split()]) == 0
    return folder


def compared(capsys, *arguments):
    """The rows of the table by run, each a mapping of its cells, and the lines below it."""
    assert main(["compare", *map(str, arguments)]) == 0
    heading, _, *lines = capsys.readouterr().out.splitlines()
    names, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (heading, *lines) if "|" in line)
    return {row[0]: dict(zip(names, row)) for row in rows}, [line for line in lines if line and "|" not in line]


def test_the_table_has_the_records_numbers_and_the_options_that_differ(trained, tmp_path, capsys):
    runs = [trained / name for name in ("none", "noisin", "dropout")]
    rows, said = compared(capsys, *runs, "--figure", tmp_path / "curves.png")
    none, noisin, dropout = (rows[str(run)] for run in runs)
    record = json.loads((trained / "noisin" / "record.json").read_text())
    test = record["test_ppl"]
    assert noisin == {
        "run": str(trained / "noisin"),
        "method": "NOISIN",
        "--hidden": "12",
        "--eval-particles": "2",
        "status": "finished",
        "epoch": "2 of 2",
        "best epoch": str(record["best_epoch"]),
        "valid": f"{record['valid_ppl']:.2f}",
        "test clean": f"{test['clean']:.2f}",
        "test averaged": f"{test['averaged']:.2f}",
        "test limit": f"{test['averaged_limit']:.2f}",
        "test marginal": f"{test['marginal']:.2f}",
        "gamma": "0.300",
        "time": noisin["time"],
    }
    assert (none["method"], none["--hidden"], none["--eval-particles"], none["test marginal"]) == (
        "None",
        "8",
        "-",
        "-",
    )
    assert (dropout["status"], dropout["test clean"], dropout["time"][:3]) == ("not tested", "-", "0:0")
    assert said == [f"Figure: {tmp_path / 'curves.png'}"] and imread(tmp_path / "curves.png").size


def test_each_run_has_its_curves_and_a_label_of_its_own(trained, tmp_path):
    shutil.copytree(trained / "none", tmp_path / "copy")
    folders = [trained / "none", tmp_path / "copy", trained / "noisin"]
    runs = {folder.name: read_run(folder) for folder in folders}
    assert list(labels(runs)) == ["None, hidden 8 (none)", "None, hidden 8 (copy)", "NOISIN, hidden 12"]
    figure = draw(runs)
    for axes, key in zip(figure.axes, ("valid_ppl", "train_ppl")):
        shown = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
        for label, record in zip(labels(runs), runs.values()):
            assert shown[label] == [epoch[key] for epoch in record["epochs"]]
    drawn = [line for line in figure.axes[1].get_lines() if line.get_label() in labels(runs)]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(labels(runs))
    assert "17.24" in figure.axes[0].texts[0].get_text()  # of the synthetic text, which all of them have


def test_runs_of_other_texts_or_vocabularies_are_not_comparable(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows, said = compared(capsys, trained / "none", trained / "other")
    book = trained / "book.txt"
    assert rows[str(trained / "other")]["corpus"] == str(book)
    assert said == [
        "Not comparable, because their corpora or vocabularies differ: "
        f"{trained / 'none'} (synthetic); {trained / 'other'} ({book})",
        "Figure: comparison.png",
    ]
    runs = {name: read_run(trained / name) for name in ("other", "none")}
    assert not list(draw(runs).axes[0].texts)  # whose source is not that of both
    fewer = {**runs["other"], "config": {**runs["other"]["config"], "max_vocabulary": 3}}
    assert [list(group) for group in by_corpus({"fewer": fewer, **runs})] == [["fewer"], ["other"], ["none"]]
    # The same text under its published name has the published types.
    published = {**runs["other"], "config": {**runs["other"]["config"], "corpus": "ptb"}}
    assert [list(group) for group in by_corpus({"ptb": published, **runs})] == [["ptb"], ["other"], ["none"]]


def test_runs_without_an_epoch_have_a_row_and_no_figure(trained, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    shutil.copy(trained / "none" / "config.json", tmp_path / "begun")
    rows, said = compared(capsys, tmp_path / "begun", "--figure", tmp_path / "curves.png")
    assert rows[str(tmp_path / "begun")]["status"] == "not one epoch yet"
    assert said == ["No figure: none of these runs has finished an epoch yet."]
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("nowhere", "nowhere does not exist"),
        ("book.txt", "book.txt holds no run"),
        ("none none/record.json", "record.json holds no run"),
        ("none --figure record.json", "name a file that ends in .png or .svg"),
        ("none --figure absent/curves.png", "there is no folder absent"),
    ],
)
def test_anything_else_is_refused_in_one_line(trained, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(trained)
    assert main(["compare", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
