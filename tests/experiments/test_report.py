"""The report: numbers are the records', strings are escaped, choices are by validation, claims are judged both ways."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re
import sys
from collections import Counter, defaultdict
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from helpers.records import make_up_record

from experiments.__main__ import main
from experiments.catalogue import (
    DEMO,
    DROPOUT,
    FIGURE2,
    ICML,
    IDENTITY,
    LOWER_BOUND,
    RATES,
    TABLE2,
    TABLE3,
    ZAREMBA,
    Case,
)
from experiments.report.build import RESULTS, write_own_report, write_report
from experiments.report.claims import CLAIMS, Judgement, judge, plain, seed_deviations
from experiments.report.page import Compared, Picture, Speed, page
from experiments.report.runs import Run, candidates, choose, load_runs, runs_of
from experiments.report.tables import (
    Line,
    cells,
    choices_frame,
    csv_text,
    exact,
    frame,
    latex,
    latex_text,
    lines,
    markdown_safe,
    summary_frame,
    verdicts_frame,
)
from noisin.config import config_from_dict
from noisin.objective import approximate_limit
from noisin.runs.formats import LARGEST, seal
from noisin.system.errors import UserError, escape_control
from noisin.system.files import read_json, write_json

NONE, NOISIN, LEARNED = (FIGURE2.configs([method])[0] for method in ("none", "noisin", "noisin*"))
DROPPED = FIGURE2.configs(["dropout"])[0]
HOSTILE = "<script>alert('x')</script>&\"|`\n\\end{table}"
VOID = {"meta", "link", "img", "br", "hr"}


def changed(config, **options):
    """The configuration with other options."""
    return dataclasses.replace(config, **options)


def record_of(config, clean=100.0, averaged=None, valid=None, best=2, **changes):
    """A record as a run would write it, with four epochs of made-up numbers."""
    valid = clean if valid is None else valid
    gamma = [0.123456] * config.layers if "noisin" in config.method else []
    epochs = [
        {
            "epoch": n,
            "train_ppl": 300.5 / n,
            "valid_ppl": valid + abs(n - best),
            "seconds": 1.5,
            "tokens_per_second": 1234.5,
            "gamma": gamma,
        }
        for n in (1, 2, 3, 4)
    ]
    averaged = clean + 1 if averaged is None else averaged
    test_ppl = {"clean": clean, "bound": averaged + 8, "averaged": averaged, "samples": 10}
    test_ppl.update(averaged_limit=averaged, averaged_limit_error=0.25)
    return {**make_up_record(config, epochs, best, test_ppl), **changes}


def put(folder, *records):
    """Seal and file the records, and load them as the report does."""
    (folder / "made-up").mkdir(parents=True, exist_ok=True)
    for index, record in enumerate(records):
        write_json(folder / "made-up" / f"{index}.json", seal(record))
    return load_runs(folder)


def verdicts(folder, claim, *records, measurements=None):
    """How a claim is judged in the one setting that these records are of, or on cost, by measure."""
    found = [judgement for judgement in judge(put(folder, *records), measurements) if judgement.claim == claim]
    found = [judgement for judgement in found if not judgement.measure.startswith("cases,")]
    return {judgement.measure: judgement.verdict for judgement in found if judgement.verdict != "not enough runs"}


def level(config, perplexity):
    """A record with the same test perplexity by both estimators."""
    return record_of(config, perplexity, perplexity)


def diverged(config):
    """The record of a run that never ended an epoch."""
    nothing = {"epochs": [], "best_epoch": None, "valid_ppl": None, "test_ppl": None, "gamma": []}
    return record_of(config, **nothing, status="diverged")


def with_luck(deviation):
    """Two seeds in a setting of their own: the standard deviation of their logarithms."""
    elsewhere = changed(DROPPED, layers=2)
    return [
        level(changed(elsewhere, seed=seed), 100.0 * math.exp(side * deviation / math.sqrt(2)))
        for seed, side in ((1, -1), (2, 1))
    ]


class Page(HTMLParser):
    """What a browser would find: ids, links, sources, cells, headings; and that every tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources, self.tags, self.texts, self.rows = [], [], [], [], [], []
        self.open = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.sources += [given["src"]] if "src" in given else []
        assert not [name for name in given if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", given, []])
        if tag == "a" and {"td", "th"} & set(self.open):
            self.rows[-1][-1][2].append(given["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1][0] += data

    def text(self):
        return "".join(self.texts)

    def of(self, *first):
        """Rows whose first cell is this."""
        return [row for row in self.rows if row[0][0] in first]


def report(tmp_path, *records, measurements=None):
    """Write a report of these records; its page."""
    results = tmp_path / "results"
    results.mkdir()
    put(results, *records)
    path = tmp_path / "measurements.json"
    if measurements is not None:
        path.write_text(json.dumps(measurements), encoding="utf-8")
    write_report(tmp_path / "out", results, path)
    return Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A report of made-up records and measurements: its folder, its page."""
    folder = tmp_path_factory.mktemp("report")
    page = report(folder, *map(record_of, (NONE, DROPPED, LEARNED)), measurements=MEASURED)
    return folder / "out", page


# ---- the numbers ---------------------------------------------------------------------------------------------------


def test_every_committed_run_is_shown_with_its_numbers_which_lead_to_its_details(tmp_path, monkeypatch):
    # The figures of all of them are compared with the committed ones, in test_experiments.py.
    monkeypatch.setattr("noisin.figures.save", lambda figure, path: path.write_text("<svg/>"))
    assert main(["report", "--out", str(tmp_path)]) == 0
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert len(page.ids) == len(set(page.ids)) and anchors <= set(page.ids)
    runs = load_runs()
    assert len(runs) == len(list(RESULTS.glob("*/*.json"))) and len({run.anchor for run in runs}) == len(runs)
    text, linked_rows = page.text(), defaultdict(list)
    for row in page.rows:
        for link in {cell[2][0] for cell in row if len(cell[2]) == 1 and len(row) in (10, 11)}:
            linked_rows[link].append(row)
    for run in runs:
        numbers = [run.valid, run.test("clean"), run.test("averaged"), run.test("limit")]
        estimated = run.stochastic and "averaged_limit" not in (run.record["test_ppl"] or {})
        marks = ["", "", "", "≈" if estimated else ""]
        rows = linked_rows[f"#{run.anchor}"]
        assert rows
        for row in rows:
            linked = [cell[0] for cell in row if cell[2] == [f"#{run.anchor}"]]
            shown = [f"{mark}{number:.1f}" for mark, number in zip(marks, numbers) if math.isfinite(number)]
            assert linked == (shown or 4 * ["–"])
            assert row[2][0] == str(run.record["seed"]) and row[-1][0] == run.record["status"]
        for value in (run.record["git"], run.record["started"], str(run.record["parameters"]), run.file):
            assert value in text
    assert sum(("article" == tag) for tag, _ in page.tags) == len(runs)


@pytest.mark.parametrize(
    "estimator, without, below",
    [("limit", (), 24), ("clean", (), 22), ("limit", (IDENTITY,), 22), ("limit", (IDENTITY, LOWER_BOUND), 21)],
)
def test_as_many_perplexities_of_table_2_are_below_the_papers_as_the_pages_say(estimator, without, below):
    runs = load_runs()
    table2 = dataclasses.replace(TABLE2, searches=[search for search in TABLE2.searches if search not in without])
    found = [
        choose(candidates(table2, case, runs), method).test(estimator) < published
        for case in TABLE2.cases
        for method, published in case.paper.items()
    ]
    assert (len(found), sum(found)) == (24, below)


def test_an_estimated_limit_reads_too_high_by_no_more_than_the_pages_say():
    both = [run for run in load_runs() if run.stochastic and not run.approximate]
    assert len(both) >= 4
    for run in both:
        test = run.record["test_ppl"]
        estimate = approximate_limit(test["bound"], test["averaged"], test["samples"])
        assert 1 <= estimate / run.test("limit") < 1.0075


def test_every_epoch_of_every_run_is_in_its_details(tmp_path):
    page = report(tmp_path, record_of(NOISIN), record_of(NONE))
    for epoch in record_of(NOISIN)["epochs"]:
        rows = page.of(str(epoch["epoch"]), f"{epoch['epoch']} ★")
        shown = [f"{epoch['train_ppl']:.2f}", f"{epoch['valid_ppl']:.2f}"]
        assert [[cell[0] for cell in row[1:3]] for row in rows] == [shown, shown]
        assert sorted(row[3][0] for row in rows) == ["0.1235", "–"]
    assert [row[0][0] for row in page.of("2", "2 ★")] == ["2 ★", "2 ★"]  # the best one
    for name, value in (("learning rate", "0.001"), ("corpus", "ptb"), ("versions: mxnet", "1.9.1")):
        assert re.search(re.escape(name) + re.escape(value), page.text())


def test_csv_has_every_digit_and_latex_the_rounded_numbers(tmp_path):
    report(tmp_path, record_of(NOISIN, clean=123.4567890123, averaged=124.06, valid=133.75))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "figure2.csv").read_text())))
    assert [row["method"] for row in rows] == ["None", "Dropout", "NOISIN", "NOISIN*"]
    ours = rows[2]
    assert (ours["test_clean"], ours["test_averaged"], ours["valid_ppl"]) == ("123.4567890123", "124.06", "133.75")
    assert (ours["best_epoch"], ours["epochs"], ours["gamma"], ours["git"]) == ("2", "4", "0.123456", "0123abc")
    assert (ours["published"], ours["record"]) == ("166.0", "made-up/0.json")
    text = (tmp_path / "out" / "figure2.tex").read_text()
    assert r"NOISIN & 0.123 & 1 & float32 & 2 of 4 & 133.8 & 123.5 & 124.1 & 124.1 & 166.0 & early-stopped \\" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    columns = {line.count("&") for line in text.splitlines() if line.endswith(r"\\")}
    assert columns == {10} and re.search(r"\\begin\{tabular\}\{[lr]{11}\}", text)
    table = (tmp_path / "out" / "figure2.md").read_text()
    assert re.search(r"\| NOISIN +\| 0.123 +\| 1 .*\| 133.8 +\| 123.5 +\| 124.1 +\| 124.1 +\| 166.0 ", table)


def test_what_was_not_run_is_missing_and_never_filled_in(tmp_path):
    page = report(tmp_path, record_of(changed(NOISIN, activation="relu")))
    found = [[cell[0] for cell in row] for row in page.of("None", "Dropout", "NOISIN", "NOISIN*") if len(row) == 11]
    assert len(found) == 24
    missing = [row for row in found if row[-1] == "not run yet"]
    assert len(missing) == 23
    assert {cell for row in missing for cell in row[1:9]} == {"–"}
    assert sum(float(row[9]) for row in found) == pytest.approx(3764.3)  # the paper's, of the table as it is printed
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table2.csv").read_text())))
    empty = [row for row in rows if row["status"] == "not run yet"]
    assert len(empty) == 23 and {row["test_clean"] + row["seed"] + row["valid_ppl"] for row in empty} == {""}
    assert (tmp_path / "out" / "table2.tex").read_text().count("not run yet") == 23
    # An experiment without any record has no section, but its claims are there.
    assert TABLE3.name not in page.ids and TABLE3.title in page.text()


def test_the_summary_has_the_mean_over_seeds_of_what_validates_best_and_the_papers_number(tmp_path):
    of_case = [record_of(changed(NONE, seed=seed), clean, clean + 2) for seed, clean in ((1, 100.0), (2, 103.0))]
    better, worse = (changed(NOISIN, activation="tanh", gamma=[gamma]) for gamma in (0.1, 0.4))
    searched = [record_of(better, 90.0, 95.0, valid=110.0), record_of(worse, 80.0, 85.0, valid=111.0)]
    elsewhere = diverged(changed(NOISIN, layers=2, activation="relu"))
    runs = put(tmp_path, *of_case, *searched, elsewhere)
    table = summary_frame(TABLE2, runs).set_index(["layers", "activation"])
    assert list(table.columns) == ["None", "Dropout", "NOISIN", "NOISIN*"] and len(table) == 6
    assert table.loc[("1", "sigmoid"), "None"] == "101.5 ± 2.1 / 103.5 ± 2.1 (157.4)"
    assert table.loc[("1", "tanh"), "NOISIN"] == "90.0 / 95.0 (131.9)"
    assert table.loc[("2", "relu"), "NOISIN"] == "- / - (171.0)"
    assert table.loc[("2", "tanh"), "Dropout"] == "not run yet (165.2)"
    assert summary_frame(RATES, runs).loc[0, "Dropout"] == "not run yet"  # of which the paper says nothing


def test_the_summary_of_the_page_leads_to_the_runs_and_comes_in_all_forms(tmp_path):
    seeds = [record_of(changed(NONE, seed=seed), clean) for seed, clean in ((1, 100.0), (2, 103.0))]
    page = report(tmp_path, *seeds, record_of(NOISIN, 90.0, 95.0))
    (row,) = (row for row in page.of("1-layer sigmoid RNN") if len(row) == 5)
    _, none, dropout, noisin, _ = row
    assert (none[0], none[2]) == ("101.5 ± 2.1 / 102.5 ± 2.1 (157.4)", [])
    assert (dropout[0], dropout[2]) == ("not run yet (146.9)", [])
    assert (noisin[0], noisin[2]) == ("90.0 / 95.0 (166.0)", ["#run-3"] * 2)
    for end in ("md", "csv", "tex"):
        text = (tmp_path / "out" / f"table2-summary.{end}").read_text()
        assert text.count("90.0 / 95.0 (166.0)") == 1 and text.count("not run yet") == 22
    assert not (tmp_path / "out" / "figure2-summary.md").exists()  # of one case


def test_a_diverged_run_is_shown_without_numbers(tmp_path):
    page = report(tmp_path, diverged(NOISIN), record_of(NONE))
    row = next(row for row in page.of("NOISIN") if len(row) == 11)
    assert [cell[0] for cell in row[4:8]] == ["- of 0", "–", "–", "–"] and row[-1][0] == "diverged"
    (judgement,) = (found for found in judge(load_runs(tmp_path / "results")) if found.measure == "test, clean")
    assert (judgement.verdict, plain(judgement.evidence)) == ("fails", "NOISIN (γ 0.2) - against None 100.0")


def test_runs_of_no_experiment_are_shown_too(tmp_path):
    page = report(tmp_path, record_of(changed(NONE, epochs=5), clean=77.7))
    assert "others" in page.ids and "77.7" in page.text()
    assert "table2" not in page.ids


# ---- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_links_lead_somewhere_and_nothing_comes_from_outside(made_up):
    out, page = made_up
    assert len(page.ids) == len(set(page.ids))
    anchors = [link for link in page.links if link.startswith("#")]
    assert len(anchors) > 20 and {link[1:] for link in anchors} <= set(page.ids)
    assert all(link.startswith("data:") for link in page.links if not link.startswith("#"))
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    style = re.search(r"<style>(.*?)</style>", (out / "index.html").read_text(), re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "form", "base"} == set()
    (policy,) = (given["content"] for tag, given in page.tags if tag == "meta" and "http-equiv" in given)
    assert "default-src 'none'" in policy


def test_tables_have_captions_and_headers_and_figures_have_words(made_up):
    _, page = made_up
    names = [tag for tag, _ in page.tags]
    assert names.count("caption") == names.count("table") == names.count("thead") > 5
    assert {given["scope"] for tag, given in page.tags if tag == "th"} == {"col", "row", "rowgroup"}
    assert names.count("h1") == names.count("main") == 1
    boxes = [given for tag, given in page.tags if given.get("role") == "region"]
    assert len(boxes) == names.count("table")
    assert all(given["tabindex"] == "0" and given["aria-labelledby"] in page.ids for given in boxes)
    words = [given["alt"] for tag, given in page.tags if tag == "img"]
    assert all(len(said) > 40 for said in words) and any("Learned gamma" in said for said in words)


def test_strings_of_a_record_are_text_wherever_they_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.report.runs.read_record", read_json)  # even those that a record is refused for
    record = record_of(NOISIN, status=HOSTILE, corpus=HOSTILE, git=HOSTILE, started=HOSTILE, finished=HOSTILE)
    record["versions"][HOSTILE] = HOSTILE
    record["hardware"]["cpu"] = HOSTILE
    record["error"] = {HOSTILE: [HOSTILE]}
    measured = {**MEASURED, "hardware": {"cpu": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    page = report(tmp_path, record, record_of(NONE), measurements=measured)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text().count(HOSTILE) >= 9
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "figure2.csv").read_text())))
    assert rows[2]["status"] == HOSTILE
    text = (tmp_path / "out" / "figure2.md").read_text()
    assert "<script" not in text and len({line.replace(r"\|", "").count("|") for line in text.splitlines()[2:]}) == 1
    text = (tmp_path / "out" / "figure2.tex").read_text()
    assert text.count(r"\end{table}") == 1 and r"\textbackslash{}end\{table\}" in text


def test_the_largest_numbers_and_texts_of_a_valid_record_make_a_page_of_its_size(tmp_path):
    most = 1e100
    records = []
    for seed in (1, 2, 3):
        record = record_of(changed(LEARNED, seed=seed, layers=64, epochs=60), clean=most, averaged=most, best=1)
        entry = {"train_ppl": most, "valid_ppl": most, "seconds": most, "tokens_per_second": most, "gamma": [most] * 64}
        record["epochs"] = [{**entry, "epoch": number} for number in range(1, 61)]
        record.update(valid_ppl=most, gamma=[most] * 64, floor_ppl=most, parameters=2**53, corpus="ptb")
        record["test_ppl"].update(bound=most, samples=1000, averaged_limit_error=most)
        record["git"] = ", ".join([40 * "0"] * 200)
        record["versions"] = {f"p{number}": 9_000 * "x" for number in range(20)}
        record["hardware"] = {"cpu": 9_000 * "<", "threads": [100_000] * 60, "device": 9_000 * "&"}
        records.append(record)
    written = sum(len(json.dumps(record)) for record in records)
    page = report(tmp_path, *records)
    assert written > 700_000 and len((tmp_path / "out" / "index.html").read_bytes()) < 20 * written
    assert f"{most:.1f}" in page.text()


def everywhere(value, text):
    """A JSON value with the text in place of each string, and under a name of its own."""
    if isinstance(value, dict):
        return {**{name: everywhere(inner, text) for name, inner in value.items()}, text: [text, {text: text}]}
    return text if isinstance(value, str) else value


def built(text):
    """The page of a run and of measurements that have this text wherever they may have one."""
    config = changed(LEARNED, corpus=escape_control(text))
    record = {**everywhere(record_of(config), text), "epochs": record_of(config)["epochs"]}
    run = Run(record, config, f"figure2/{text}.json", "run-1")
    table = pd.DataFrame([{text: text, "number": text}])
    speed = Speed({text: text}, [(text, table)], [Picture(b"", "png", text)])
    compared = Compared(text, {text: Line(Case(), "noisin*", run)}, Picture(b"", "svg+xml", text))
    return Page(page([run], [], [compared], judge([run]), {f"{text}.csv": text}, speed, text))


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "</dd></dl></article><script src=http://example.org/x.js></script>",
        '" onmouseover="alert(1)',
        "' onmouseover='alert(1)",
        "javascript:alert(1)",
        "<a href=javascript:alert(1)>",
        "--><img src=x onerror=alert(1)><!--",
        "<style>*{display:none}</style>",
        "&lt;&#60;",
    ],
)
def test_the_page_has_the_same_elements_whatever_a_string_says(text):
    hostile, harmless = built(text), built("word")
    assert [(tag, list(given)) for tag, given in hostile.tags] == [(tag, list(given)) for tag, given in harmless.tags]
    same = [link for link in harmless.links if not link.startswith("data:")]
    assert [link for link in hostile.links if not link.startswith("data:")] == same
    assert hostile.text().count(text) > 30


def test_latex_prints_special_characters():
    assert latex_text("50 % of a_b & $c #1 {x} ~ ^") == (
        r"50 \% of a\_b \& \$c \#1 \{x\} \textasciitilde{} \textasciicircum{}"
    )
    assert latex_text("a\\b") == r"a\textbackslash{}b"


def test_a_file_name_that_is_no_anchor_makes_one(tmp_path):
    put(tmp_path, record_of(NONE))
    for name in ('a "b', "a 'b", "a <b"):
        (tmp_path / "made-up" / f"{name}.json").write_text(json.dumps(seal(record_of(NONE))))
    anchors = [run.anchor for run in load_runs(tmp_path)]
    assert len(set(anchors)) == 4 and all(re.fullmatch(r"[A-Za-z0-9-]+", anchor) for anchor in anchors)


def test_the_same_records_make_the_same_files(tmp_path):
    put(tmp_path / "records", record_of(NONE), record_of(NOISIN), record_of(LEARNED))
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        write_report(out, tmp_path / "records", tmp_path / "none.json")
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()} and "figure2-gamma.svg" in names
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []


# ---- the choice ----------------------------------------------------------------------------------------------------


def test_a_variant_that_was_replaced_is_chosen_only_until_the_one_that_replaced_it_has_run(tmp_path):
    today = changed(DROPPED, layers=2)
    before = record_of(changed(today, dropout_output_layers="every"), clean=90.0)
    case = TABLE2.cases[3]
    for records, clean in (([before], 90.0), ([before, record_of(today, clean=95.0)], 95.0)):
        runs = put(tmp_path, *records)
        assert choose(candidates(TABLE2, case, runs), "dropout").test("clean") == clean
        found = [line for line in lines(TABLE2, runs_of(TABLE2, runs), runs) if line.run]
        assert {line.run.test("clean"): cells(line)["chosen"] for line in found} == {
            record["test_ppl"]["clean"]: ("so far" if len(records) == 1 else "yes") if record is records[-1] else "no"
            for record in records
        }
        assert [line.run.test("clean") for line in found if line.chosen] == [clean]


def test_a_searched_variant_stands_for_its_method_where_it_validates_better(tmp_path):
    own = changed(NONE, layers=1, activation="tanh")
    searched = changed(own, recurrent_init="identity")
    runs = put(tmp_path, record_of(own, clean=50.0, valid=120.0), record_of(searched, clean=90.0, valid=110.0))
    chosen, reached = (
        table[table["activation"] + table["layers"] == "tanh1"]["None"].item()
        for table in (choices_frame(TABLE2, runs), summary_frame(TABLE2, runs))
    )
    assert chosen == "identity; 1 seed"
    assert reached.startswith("90.0 /") and reached.endswith("(141.4)")
    shown = [line for line in lines(TABLE2, runs_of(TABLE2, runs), runs) if line.run]
    assert [(line.run.config, line.chosen, line.rivals) for line in shown] == [(own, False, True)]


def test_the_choice_is_by_validation_and_not_by_test(tmp_path, monkeypatch):
    weaker, stronger = changed(NOISIN, gamma=[0.1]), changed(NOISIN, gamma=[0.3])
    methods = {**FIGURE2.methods, "noisin": [{"gamma": [0.1]}, {"gamma": [0.3]}]}
    experiment = dataclasses.replace(FIGURE2, methods=methods)
    runs = put(tmp_path, record_of(weaker, clean=50.0, valid=120.0), record_of(stronger, clean=90.0, valid=110.0))
    assert choose(runs, "noisin").config.gamma == [0.3]
    table = frame(experiment, lines(experiment, runs))
    assert list(table[table.method == "NOISIN"]["chosen"]) == ["no", "yes"]
    assert list(exact(lines(experiment, runs))["chosen"].fillna("")) == ["", "", "no", "yes", ""]
    monkeypatch.setattr("experiments.report.build.EXPERIMENTS", {"ptb": experiment})
    write_report(tmp_path / "out", tmp_path, tmp_path / "none.json")
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert [(row[0][0], row[6][0]) for row in page.of("NOISIN", "NOISIN ★")] == [
        ("NOISIN", "50.0"),
        ("NOISIN ★", "90.0"),
    ]


def test_variants_are_compared_on_the_seeds_that_all_have(tmp_path):
    better, worse = changed(NOISIN, gamma=[0.2]), changed(NOISIN, gamma=[0.1])
    records = [record_of(changed(better, seed=seed), valid=valid) for seed, valid in ((1, 100.0), (2, 104.0))]
    runs = put(tmp_path, *records, record_of(worse, valid=101.0))
    assert choose(runs, "noisin").config.gamma == [0.2]
    runs = put(tmp_path, *records, record_of(changed(worse, seed=3), valid=101.0))  # none in common
    assert choose(runs, "noisin").config.gamma == [0.1]


def test_a_marginal_perplexity_is_shown_where_there_is_one(tmp_path):
    with_it = record_of(NOISIN)
    found = {"marginal": 87.65, "marginal_deviation": 0.25, "effective_particles": 50.0, "particles": 100}
    with_it["test_ppl"].update(**found, repetitions=3)
    report(tmp_path, with_it, record_of(NONE))
    row = next(
        row for row in csv.DictReader(io.StringIO((tmp_path / "out" / "figure2.csv").read_text())) if row["gamma"]
    )
    assert (row["test_marginal"], row["test_marginal_deviation"]) == ("87.65", "0.25")
    table = (tmp_path / "out" / "figure2.md").read_text()
    assert "test marginal" in table and "87.7" in table
    assert "87.7" in (tmp_path / "out" / "index.html").read_text()
    (tmp_path / "without").mkdir()
    report(tmp_path / "without", record_of(NONE))
    assert "test marginal" not in (tmp_path / "without" / "out" / "figure2.md").read_text()


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (1.0, LARGEST), (LARGEST, LARGEST)])
def test_a_valid_record_of_extreme_numbers_is_shown_too(tmp_path, low, high):
    records = []
    for seed, config in itertools.product((1, 2), (NONE, NOISIN, LEARNED)):
        record = record_of(changed(config, seed=seed), valid=low, best=1, floor_ppl=high, parameters=2**53)
        for epoch in record["epochs"]:
            epoch.update(valid_ppl=low if epoch["epoch"] == 1 else high, train_ppl=high, seconds=low)
            epoch.update(tokens_per_second=high, gamma=[high] * len(record["gamma"]))
        record.update(gamma=record["epochs"][0]["gamma"])
        record["test_ppl"].update(clean=low, bound=high, averaged=low, samples=2 if seed == 1 else 1000)
        for name in ("averaged_limit", "averaged_limit_error"):
            del record["test_ppl"][name]
        records.append(record)
    report(tmp_path, *records)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "figure2.csv").read_text())))
    assert (rows[0]["valid_ppl"], rows[1]["test_samples"]) == (repr(low), str(1000))


def test_variants_that_differ_by_their_noise_do_so_in_the_csv(tmp_path):
    table = exact(lines(ICML, put(tmp_path, *map(record_of, ICML.configs(["noisin"])[:3]))))
    named = table[table["record"].notna()][["noise", "noise_mode"]].values.tolist()
    assert sorted(named) == [[family, "multiplicative"] for family in ("bernoulli", "gaussian", "gaussian")]


def test_without_jinja2_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match="the report needs Jinja2 .*pip install"):
        report(tmp_path, record_of(NONE))


def test_a_folder_whose_name_is_not_utf8_is_shown(tmp_path):
    run = tmp_path / "caf\udce9"
    run.mkdir()
    write_json(run / "record.json", seal(record_of(NONE)))
    write_own_report(run.parent, tmp_path / "report")
    write_own_report(run, tmp_path / "report")
    assert r"caf\udce9" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\x00"])
def test_no_text_of_a_csv_is_a_formula(text):
    table = pd.DataFrame([{"a": text, "b": -1.5, "c": "-", "d": f"1{text}"}], dtype=object)
    text = text.replace("\r", " ")
    (row,) = csv.reader(io.StringIO(csv_text(table).split("\n", 1)[1].replace("\x00", "0"), newline=""))
    assert row == ["'" + text.replace("\x00", "0"), "-1.5", "", "1" + text.replace("\x00", "0")]


def test_seeds_are_averaged_and_never_chosen_among(tmp_path):
    lucky = [record_of(changed(NOISIN, seed=seed), clean, valid=clean) for seed, clean in ((1, 90.0), (2, 130.0))]
    steady = [record_of(changed(LEARNED, seed=seed), clean, valid=clean) for seed, clean in ((1, 101.0), (2, 103.0))]
    runs = put(tmp_path, *lucky, *steady)
    best = choose(runs, "noisin", "noisin*")
    assert best.config.method == "noisin*" and best.seeds == 2 and best.test("clean") == 102.0
    assert plain(tuple(best.sentence("clean"))) == "NOISIN* (γ from 0.3) 102.0 ± 1.4 (seeds 1, 2)"


# ---- the claims ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim, rival", [("a", NONE), ("b", DROPPED)])
@pytest.mark.parametrize("ours, verdict", [(99.0, "holds"), (101.0, "fails"), (100.0, "undecided")])
def test_noisin_beats_a_rival_or_not(tmp_path, claim, rival, ours, verdict):
    records = [level(rival, 100.0), *with_luck(0.001)]
    found = verdicts(tmp_path, claim, *records, record_of(LEARNED, ours, averaged=150.0))
    assert found == {"test, clean": verdict, "test, limit": "fails"}
    found = verdicts(tmp_path, claim, *records, record_of(NOISIN, 150.0, averaged=ours))
    assert found == {"test, clean": "fails", "test, limit": verdict}


def test_without_several_seeds_of_anything_no_difference_counts(tmp_path):
    assert set(verdicts(tmp_path, "a", level(NONE, 100.0), level(NOISIN, 50.0)).values()) == {"undecided"}
    assert set(verdicts(tmp_path, "a", diverged(NONE), level(NOISIN, 50.0)).values()) == {"holds"}
    assert set(verdicts(tmp_path, "a", level(NONE, 50.0), diverged(NOISIN)).values()) == {"fails"}
    assert set(verdicts(tmp_path, "a", diverged(NONE), diverged(NOISIN)).values()) == {"undecided"}


def test_the_better_of_noisin_is_found_on_validation(tmp_path):
    fixed, learned = record_of(NOISIN, 90.0, valid=120.0), record_of(LEARNED, 110.0, valid=115.0)
    found = verdicts(tmp_path, "a", record_of(NONE, 100.0), fixed, learned, *with_luck(0.001))
    assert found["test, clean"] == "fails"


def test_a_rate_that_validates_better_in_its_setting_speaks_for_dropout(tmp_path):
    (in_table2,) = (
        config for config in TABLE2.configs(["dropout"]) if (config.layers, config.activation) == (2, "relu")
    )
    (ours,) = (config for config in TABLE2.configs(["noisin"]) if (config.layers, config.activation) == (2, "relu"))
    tried = {config.dropout_inputs: config for config in RATES.configs() if config.activation == "relu"}
    assert in_table2 in tried.values()
    better, worse = (
        changed(tried[rate], recurrent_init=kind) for rate, kind in ((0.2, "orthogonal"), (0.05, "identity"))
    )
    # The last of these is of another setting, and has no say.
    records = [record_of(ours, 100.0), record_of(in_table2, 110.0), record_of(worse, 80.0), *with_luck(0.001)]
    assert verdicts(tmp_path, "b", *records)["test, clean"] == "holds"
    records.append(record_of(better, 95.0))
    assert verdicts(tmp_path, "b", *records)["test, clean"] == "fails"
    (judgement,) = (one for one in judge(load_runs(tmp_path)) if one.claim == "b" and one.measure == "test, clean")
    assert plain(judgement.evidence) == "NOISIN (γ 0.2) 100.0 against Dropout (rates 0.2, 0.2, 0.2, 0.1) 95.0"


@pytest.mark.parametrize("apart, verdict", [(1.0, "undecided"), (20.0, "holds"), (-20.0, "fails")])
def test_a_difference_within_the_spread_of_seeds_is_no_verdict(tmp_path, apart, verdict):
    records = [record_of(changed(NONE, seed=seed), 100.0 + 3 * seed) for seed in (1, 2, 3)]
    records += [record_of(changed(NOISIN, seed=seed), 100.0 + 3 * seed - apart) for seed in (1, 2, 3)]
    assert verdicts(tmp_path, "a", *records)["test, clean"] == verdict


@pytest.mark.parametrize("seeds", [(1, 1), (3, 1), (1, 4)])
@pytest.mark.parametrize("times", [-1.02, -0.98, 0.98, 1.02])
def test_the_spread_of_other_methods_seeds_stands_for_a_method_with_one_seed(tmp_path, seeds, times):
    of_all = 0.03**2 / (1 + sum(count - 1 for count in seeds))  # a method's several seeds are all alike
    margin = 2 * math.sqrt(of_all * seeds.count(1))
    records = with_luck(0.03)
    for config, count, perplexity in zip((NOISIN, NONE), seeds, (100.0, 100.0 * math.exp(times * margin))):
        records += [level(changed(config, seed=seed + 1), perplexity) for seed in range(count)]
    expected = "undecided" if abs(times) < 1 else "holds" if times > 0 else "fails"
    assert set(verdicts(tmp_path, "a", *records).values()) == {expected}


def test_the_deviation_over_seeds_is_pooled_over_the_rows_of_each_method(tmp_path):
    other = changed(NOISIN, layers=2)
    rows = [(NONE, [100.0, 110.0]), (NOISIN, [50.0, 60.0, 75.0]), (other, [90.0, 80.0]), (LEARNED, [90.0])]
    records = [level(changed(config, seed=n), value) for config, of_row in rows for n, value in enumerate(of_row)]
    records += [level(DROPPED, 10.0), diverged(changed(DROPPED, seed=2))]
    records.append(level(changed(NONE, dtype="bfloat16", seed=0), 100.0))  # no seed of its own
    runs = put(tmp_path, *records)

    def pooled(*of_rows):
        squares = [np.sum((np.log(of_row) - np.mean(np.log(of_row))) ** 2) for of_row in of_rows]
        return math.sqrt(sum(squares) / sum(len(of_row) - 1 for of_row in of_rows))

    (none, noisin, other, _), found = [of_row for _, of_row in rows], seed_deviations(runs)
    of_all = pooled(none, noisin, other)
    expected = {"none": pooled(none), "noisin": pooled(noisin, other), "noisin*": of_all, "dropout": of_all}
    for measure in ("clean", "limit", "validation"):  # the same numbers here
        assert {method: found[measure][method] for method in expected} == pytest.approx(expected)
    of_one_seed = seed_deviations([run for run in runs if run.config.seed == 0])
    assert {value for by_method in of_one_seed.values() for value in by_method.values()} == {None}


def test_the_verdicts_are_counted_by_claim_and_measure():
    def one(claim, setting, measure, verdict, paper="-"):
        return Judgement(claim, setting, measure, verdict, ("of no matter",), paper)

    judgements = [
        one("a", "all", "cases, clean", "holds", "fails: of some"),
        one("a", "all", "cases, limit", "undecided", "fails: of some"),
        *(one("a", f"case {n}", "test, clean", "holds", "holds: 1 against 2") for n in (1, 2)),
        *(one("a", f"case {n}", "test, limit", ("holds", "fails")[n - 1], "holds: 1 against 2") for n in (1, 2)),
        one("a", "case 3", "-", "not enough runs", "holds: 1 against 2"),  # could not be judged
        one("e", "case 1", "time of a step", "holds"),
    ]
    table = verdicts_frame(judgements)
    assert [row[1:] for row in table.itertuples(index=False)] == [
        ("all", "cases", "clean: holds; limit: undecided", "fails"),
        ("2 comparisons", "test", "clean: holds in 2; limit: holds in 1, fails in 1", "holds in 2"),
        ("case 1", "time of a step", "holds", "-"),
    ]
    assert list(table["claim"]) == [f"(a) {CLAIMS['a']}", "", f"(e) {CLAIMS['e']}"]


WON, LOST, EVEN, GONE = 90.0, 110.0, 100.0, None


@pytest.mark.parametrize(
    "ours, over_none, over_dropout",
    [
        (6 * [WON], "holds", "holds"),
        ([*5 * [WON], LOST], "fails", "holds"),
        ([*4 * [WON], LOST, LOST], "fails", "fails"),
        ([*5 * [WON], EVEN], "undecided", "holds"),
        ([*4 * [WON], LOST, EVEN], "fails", "undecided"),
        ([*5 * [WON], GONE], "not enough runs", "holds"),
        ([*4 * [WON], EVEN, GONE], "not enough runs", "not enough runs"),
    ],
)
def test_a_claim_on_every_case_is_judged_over_all_of_them(tmp_path, ours, over_none, over_dropout):
    records = [level(changed(NONE, layers=2, seed=2), 100.1)]  # of the second case: some luck
    for case, perplexity in zip(TABLE2.cases, ours):
        rivals = (changed(config, **case.options) for config in (NONE, DROPPED))
        records += [level(config, 100.0) for config in rivals]
        records += [] if perplexity is GONE else [level(changed(LEARNED, **case.options), perplexity)]
    found = [one for one in judge(put(tmp_path, *records)) if one.measure.startswith("cases,")]
    assert [one.verdict for one in found] == [over_none, over_none, over_dropout, over_dropout]
    # "On all but one instance": by the paper's numbers too, once each.
    assert [one.paper for one in found[1:3]] == ["fails: holds in 5, fails in 1", "holds: holds in 5, fails in 1"]
    counts = Counter({WON: "holds", LOST: "fails", EVEN: "undecided", GONE: "not enough runs"}[one] for one in ours)
    for one in found:
        said = dict(part.rsplit(" in ", 1) for part in plain(one.evidence).split(", "))
        assert said == {verdict: str(count) for verdict, count in counts.items()}


@pytest.mark.parametrize("wide, verdict", [(NOISIN, "holds"), (LEARNED, "fails")])
@pytest.mark.parametrize("times", [1.0, 3.9, 4.1])
def test_stability_over_seeds_needs_several_and_a_clear_difference(tmp_path, wide, verdict, times):
    narrow = LEARNED if wide is NOISIN else NOISIN
    records = [level(changed(wide, seed=seed), 100.0 + times * seed) for seed in (1, 2, 3)]
    records += [level(changed(narrow, seed=seed), 120.0 + seed) for seed in (1, 2, 3)]
    assert verdicts(tmp_path, "c", *records[:-1]) == {}
    found = verdicts(tmp_path, "c", *records)
    expected = verdict if times > 4 else "undecided"
    assert found == {f"deviation over seeds, {estimator}": expected for estimator in ("clean", "limit")}
    found = verdicts(tmp_path, "c", *records[:2], diverged(changed(wide, seed=3)), *records[3:])
    assert set(found.values()) == {verdict}


@pytest.mark.parametrize("wide, verdict", [("noisin", "holds"), ("noisin*", "fails")])
def test_stability_over_the_cases_of_table_2_needs_all(tmp_path, wide, verdict):
    configs = TABLE2.configs(["noisin", "noisin*"])
    records = [
        record_of(config, 100.0 + index * (9 if config.method == wide else 1)) for index, config in enumerate(configs)
    ]
    assert not [measure for measure in verdicts(tmp_path, "c", *records[:-1]) if "cases" in measure]
    found = verdicts(tmp_path, "c", *records)
    assert found["deviation over cases, clean"] == found["deviation over cases, limit"] == verdict
    (paper,) = {found.paper for found in judge(load_runs(tmp_path)) if "deviation over cases" in found.measure}
    assert paper == "holds: NOISIN* 9.4 against NOISIN 23.2"  # by the 12 numbers of Table 2
    # One case turns it: without the last, which is far off, those of the other method differ more.
    last = next(record for record in reversed(records) if record["method"] != wide)
    last["test_ppl"]["clean"] = 1000.0
    assert verdicts(tmp_path, "c", *records)["deviation over cases, clean"] == "undecided"


def overfitting(tmp_path, none, ours):
    """How (d) is judged on NOISIN: the best epochs of each seed of None, of NOISIN; whether later, whether less."""
    records = [record_of(changed(NONE, seed=seed + 1), best=best) for seed, best in enumerate(none)]
    records += [record_of(changed(NOISIN, seed=seed + 1), 90.0, best=best) for seed, best in enumerate(ours)]
    found = verdicts(tmp_path, "d", *records)
    assert list(found) == ["best epoch on validation", "rise an epoch from there on"]
    return list(found.values())


# Of 4 epochs: a run whose best is the fourth does not overfit.
@pytest.mark.parametrize(
    "none, ours, later",
    [
        ([2], [3], "holds"),
        ([3], [2], "fails"),
        ([2], [2], "fails"),
        ([2], [1, 4], "holds"),  # 2.5 on average
        ([3], [1, 4], "fails"),
    ],
)
def test_the_best_epoch_is_later_or_not(tmp_path, none, ours, later):
    assert overfitting(tmp_path, none, ours)[0] == later


@pytest.mark.parametrize("none, ours, expected", [([1, 2], [4, 4], "holds"), ([1, 4], [4, 4], "fails")])
def test_where_a_run_of_none_does_not_overfit_the_claim_fails(tmp_path, none, ours, expected):
    assert overfitting(tmp_path, none, ours) == [expected, expected]


@pytest.mark.parametrize(
    "none, ours, less",
    [
        ([0.03], [0.01], "holds"),
        ([0.03, 0.05], [0.01, 0.02], "holds"),
        ([0.03, 0.05], [0.01, 0.04], "undecided"),
        ([0.01, 0.02], [0.03, 0.05], "fails"),
    ],
)
def test_validation_rises_less_or_not(tmp_path, none, ours, less):
    """The best epoch is the second of four for None, the third for NOISIN: a rise counts for each epoch."""
    records = []
    for config, best, rises in ((NONE, 2, none), (NOISIN, 3, ours)):
        for seed, rise in enumerate(rises, 1):
            record = record_of(changed(config, seed=seed), best=best)
            record["epochs"][-1]["valid_ppl"] = record["valid_ppl"] * (1 + (4 - best) * rise)
            records.append(record)
    assert verdicts(tmp_path, "d", *records)["rise an epoch from there on"] == less


def test_two_runs_of_a_seed_are_one_in_the_mean_of_best_epochs(tmp_path):
    ours = [record_of(changed(NOISIN, dtype=dtype), best=1) for dtype in ("float32", "bfloat16")]
    ours.append(record_of(changed(NOISIN, seed=2), best=4))
    assert verdicts(tmp_path, "d", record_of(NONE, best=2), *ours)["best epoch on validation"] == "holds"


def test_a_run_that_diverges_is_not_one_that_overfits_later(tmp_path):
    late = record_of(NOISIN, best=4, status="diverged")
    assert set(verdicts(tmp_path, "d", record_of(NONE, best=2), late).values()) == {"fails"}


def test_validation_that_ends_at_its_best_is_no_overfitting(tmp_path):
    none = record_of(NONE, best=2)
    none["epochs"][-1]["valid_ppl"] = none["valid_ppl"]
    assert set(verdicts(tmp_path, "d", none, record_of(NOISIN, best=4)).values()) == {"fails"}


def test_overfitting_says_by_how_much_validation_rises(tmp_path):
    runs = put(tmp_path, record_of(NONE, 100.0, best=2), record_of(NOISIN, 100.0, best=3))
    said = next(plain(found.evidence) for found in judge(runs) if found.claim == "d")
    none, ours = said.split("; ")
    assert none == "None best in epoch 2 of 4, then +2.0 % in 2 epochs"
    assert ours == "NOISIN (γ 0.2) best in epoch 3 of 4, then +1.0 % in 1 epoch"


def test_a_rise_while_training_rises_too_is_no_overfitting(tmp_path):
    none = record_of(NONE, 100.0, best=2)
    none["epochs"][-1]["train_ppl"] = 500.0
    assert set(verdicts(tmp_path, "d", none, record_of(NOISIN, 90.0, best=3)).values()) == {"fails"}


def measured(**rates):
    """Content of results.json with these words a second."""
    entries = [
        {
            "workload": "ptb-rnn-256",
            "name": name.replace("_star", "*"),
            "dtype": "float32",
            "words_per_second": rate,
            "min": rate,
            "max": rate,
            "rounds": 7,
            "rates": 7 * [rate],
            "peak_mib": 400.0,
        }
        for name, rate in rates.items()
    ]
    return {"measurements": entries, "growth": [], "hardware": {}, "versions": {}, "startup_seconds": None}


MEASURED = measured(limit=200.0, none=100.0, noisin=98.0, dropout=80.0)


@pytest.mark.parametrize("name, fast", [("noisin", "holds"), ("noisin_star", "holds"), ("dropout", "fails")])
def test_cost_is_judged_by_the_benchmark(tmp_path, name, fast):
    runs = put(tmp_path, record_of(NONE))
    slow = {"holds": "fails", "fails": "holds"}[fast]
    for rate, verdict in ((91.0, fast), (90.8, slow)):  # 1.099 and 1.101 times the time
        other = 181.8 - rate  # on the other side
        for rates, said in (
            (7 * [rate], verdict),
            ([other] + 6 * [rate], verdict),  # by luck seven agree so far once in eight times
            (2 * [other] + 5 * [rate], "undecided"),
            (6 * [rate], "undecided"),  # too few rounds
        ):
            measurements = measured(none=100.0, **{name: rate})
            measurements["measurements"][1]["rates"] = rates
            (found,) = (one for one in judge(runs, measurements) if one.claim == "e")
            assert found.verdict == said
    measurements = measured(none=100.0, **{name: 80.0})
    measurements["measurements"][0]["rates"] = [100.0, 160.0, *5 * [120.0]]
    (found,) = (one for one in judge(runs, measurements) if one.claim == "e")
    assert plain(found.evidence) == "1.50 times the time of None, 1.25 to 2.00 in 7 rounds"
    assert [one.verdict for one in judge(runs) if one.claim == "e"] == ["not measured"]


@pytest.mark.parametrize(
    "ours, verdict, said",
    [
        (99.0, "holds", "gain +1.00 %"),
        (97.1, "holds", "gain +2.90 %"),
        (96.9, "undecided", "gain +3.10 %, small or not"),  # within 0.28 % of luck
        (96.6, "fails", "gain +3.40 %, not small"),
        (101.0, "fails", "gain -1.00 %"),
        (99.9, "undecided", "gain +0.10 %"),
        (None, "fails", "no gain to measure"),
    ],
)
def test_the_gain_on_wikitext2_is_small_or_not(tmp_path, ours, verdict, said):
    none, learned = TABLE3.configs(["none"])[0], TABLE3.configs(["noisin*"])[0]
    records = [level(none, 100.0), diverged(learned) if ours is None else level(learned, ours), *with_luck(0.001)]
    found = [one for one in judge(put(tmp_path, *records)) if one.claim == "f"]
    assert [(one.measure, one.verdict) for one in found] == [("test, clean", verdict), ("test, limit", verdict)]
    assert plain(found[0].evidence).split(":")[0] == said
    assert found[0].paper == "holds: +1.04 %"


@pytest.mark.parametrize(
    "perplexities, verdict",
    [
        # Dropout, standard dropout, NOISIN, both together: (g) against two rivals, then (h) against two.
        ((104.0, 102.0, 98.0, 96.0), {"g": ["holds", "holds"], "h": ["holds", "holds"]}),
        ((104.0, 96.0, 98.0, 100.0), {"g": ["holds", "fails"], "h": ["holds", "fails"]}),
        ((98.0, 98.01, 98.0, 98.0), {"g": ["undecided", "undecided"], "h": ["undecided", "undecided"]}),
        ((104.0, None, 98.0, None), {"g": ["holds", "not enough runs"], "h": 2 * ["not enough runs"]}),
    ],
)
def test_the_later_versions_claims_are_judged_against_each_rival(tmp_path, perplexities, verdict):
    methods = ("dropout", "standard-dropout", "noisin", "dropout+noisin")
    configs = [ICML.configs([method])[0] for method in methods]
    ran = [level(config, value) for config, value in zip(configs, perplexities) if value is not None]
    # A variant that validates worse has no say.
    ran += [record_of(config, 50.0, valid=200.0) for config in ICML.configs(["noisin"])[1:2]]
    judged = [one for one in judge(put(tmp_path, *ran, *with_luck(0.001))) if one.measure in ("test, clean", "-")]
    assert {claim: [one.verdict for one in judged if one.claim == claim] for claim in "gh"} == verdict


def test_without_runs_no_claim_is_judged(tmp_path):
    found = judge(put(tmp_path, record_of(changed(NONE, hidden=7))))
    assert {judgement.claim for judgement in found} == set(CLAIMS)
    assert {judgement.verdict for judgement in found} == {"not enough runs", "not measured"}

    def verdicts(experiment):
        """By the paper's own numbers, on claims (a) and (b)."""
        name = experiment.title.split(",")[0]
        of_it = [one for one in found if one.claim in "ab" and re.split("[:,]", one.setting)[0] == name]
        of_it = [one for one in of_it if "all 6 cases" not in one.setting]
        return [one.paper.split(":")[0] for one in of_it]

    # "On all but one instance": NOISIN loses once to None and once to Dropout.
    assert Counter(verdicts(TABLE2) + verdicts(TABLE3)) == {"holds": 11, "fails": 2, "-": 1}
    assert verdicts(ZAREMBA) == 2 * ["-"]  # of which the paper says nothing


# ---- speed, and mistakes -------------------------------------------------------------------------------------------


def test_speed_is_shown_if_it_was_measured(tmp_path):
    page = report(tmp_path, record_of(NONE), measurements=MEASURED)
    assert "speed" in page.ids
    assert [row[1][0] for row in page.of("None") if "(" in row[1][0]] == ["100 (100 to 100)"]
    assert any(source.startswith("data:image/png") for source in page.sources)
    for row in page.of("None / matrix products alone"):
        assert [cell[0] for cell in row[1:3]] == ["float32", "0.50"]


def test_without_measurements_there_is_no_section_of_them(tmp_path):
    assert "speed" not in report(tmp_path, record_of(NONE)).ids


@pytest.mark.parametrize(
    "content, says",
    [
        ("{", "is not JSON"),
        ("{}", "is not the record of a run: it has no 'digest'"),
        (json.dumps({**seal(record_of(NONE)), "valid_ppl": 99.0}), "was changed after it was written"),
        (json.dumps(seal({**record_of(NONE), "config": {"unheard_of": 1}})), "unknown option 'unheard_of'"),
    ],
)
def test_a_damaged_record_is_one_line_that_names_it(tmp_path, content, says):
    put(tmp_path, record_of(NONE))
    (tmp_path / "made-up" / "bad.json").write_text(content)
    with pytest.raises(UserError) as error:
        load_runs(tmp_path)
    assert says in str(error.value) and "bad.json" in str(error.value) and "\n" not in str(error.value)


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", "--out", str(tmp_path / "file")]) == 2
    errors = capsys.readouterr().err
    assert "cannot write" in errors and errors.count("\n") == 1
    with pytest.raises(UserError, match="is not a folder"):
        write_report(tmp_path / "out", tmp_path / "nowhere")
    bad = tmp_path / "measured.json"
    bad.write_text('{"measurements": [{}]}')
    with pytest.raises(UserError, match=r"measured\.json is not what `make bench` writes"):
        write_report(tmp_path / "out", measurements=bad)
    assert not (tmp_path / "out").exists()


def test_an_old_configuration_has_todays_defaults(tmp_path):
    record = record_of(NOISIN)
    del record["config"]["forget_bias"]
    page = report(tmp_path, record, record_of(NONE))
    assert [row[-1][0] for row in page.of("NOISIN") if len(row) == 11][:1] == ["early-stopped"]
    assert config_from_dict(record["config"]) == NOISIN and DROPPED.weight_decay == DROPOUT["weight_decay"]


def test_markdown_and_latex_of_a_table_take_any_text():
    table = pd.DataFrame([{"a": "x|y\nz", "b": "-"}, {"a": "[1]", "b": "2.5"}])
    assert markdown_safe(table)["a"].tolist() == [r"x\|y z", r"\[1]"]
    text = latex(table, "50 %")
    assert r"\begin{tabular}{lr}" in text and r"{[}1{]} & 2.5 \\" in text and r"\caption{50 \%}" in text
    assert r"x\textbar{}y z & -- \\" in text


# ---- the figures ---------------------------------------------------------------------------------------------------


def own_report(tmp_path, **records):
    """The page of one's own runs, of which each name has this record."""
    for name, record in records.items():
        write_json(tmp_path / "mine" / name / "record.json", seal(record))
    assert main(["report", "--runs", str(tmp_path / "mine"), "--out", str(tmp_path / "out")]) == 0
    return Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


def test_the_report_of_ones_own_runs_has_their_numbers_and_curves_and_no_claims(tmp_path, drawn):
    mine = changed(NOISIN, corpus="synthetic", hidden=7)
    write_json(tmp_path / "mine" / "small" / "config.json", {})  # nothing else of a run is read
    records = {"small": record_of(mine, 77.7), "$deep$": record_of(changed(mine, hidden=9), 66.6)}
    page = own_report(tmp_path, **records, other=record_of(changed(NONE, epochs=5), 55.5, corpus_sha256="1" * 64))
    assert set(page.ids) >= {"others", "run-1", "run-2", "run-3"} and "claims" not in page.ids
    (small,), (deep,), (other,) = page.of("NOISIN, hidden 7"), page.of("NOISIN, hidden 9"), page.of("None")
    assert [row[5][0] for row in (small, deep, other)] == ["77.7", "66.6", "55.5"]
    assert small[5][2] == ["#run-3"] and {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    for words in ("paper's claims", "ours beside the paper", "committed"):
        assert words not in page.text()
    assert f"record{tmp_path}/mine/$deep$/record.json" in page.text()
    shown = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert shown == [["NOISIN, hidden 9", "NOISIN, hidden 7"], ["None"]]  # of one corpus each


def test_ones_own_runs_of_the_papers_networks_stand_beside_its_numbers_and_judge_its_claims(tmp_path):
    seeds = [{"a": record_of(changed(NONE, seed=1), 100.0), "b": record_of(changed(NONE, seed=2), 100.1)}]
    page = own_report(tmp_path, **seeds[0], c=record_of(NOISIN, 90.0))
    assert {"others", "figure2", "table2", "claims"} <= set(page.ids)
    demo = DEMO.configs(["none"])[0]
    assert not {"demo", "table2"} & set(
        own_report(tmp_path / "other", demo=record_of(demo)).ids
    )  # nothing is published
    claims = {row[0][0][:3] for row in page.rows if re.match(r"\([a-h]\)", row[0][0])}
    assert claims == {"(a)", "(d)"}  # of dropout, WikiText-2 and the benchmarks there is nothing
    assert "not enough runs" not in page.text() and "not measured" not in page.text()


@pytest.mark.parametrize("folder, says", [("absent", "absent is not a folder"), (".", "holds no finished run")])
def test_a_report_of_no_runs_is_one_line(tmp_path, monkeypatch, capsys, folder, says):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--runs", folder]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "report").exists()


def test_of_many_other_runs_those_that_validate_best_are_drawn(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("experiments.report.build.CURVES", 2)
    page = own_report(tmp_path, **{f"r{n}": record_of(changed(NONE, hidden=n), 100.0 - n) for n in (7, 8, 9)})
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["None, hidden 9", "None, hidden 8"]
    assert (
        "those that validate best" in page.text() and len([row for row in page.rows if "None, hid" in row[0][0]]) == 3
    )


def test_every_run_has_its_curves_and_a_learned_gamma_its_path_above_the_bound(tmp_path, drawn):
    two = record_of(changed(LEARNED, layers=2), 100.0)
    two["epochs"] = [{**epoch, "gamma": [0.3 / epoch["epoch"], 0.2 / epoch["epoch"]]} for epoch in two["epochs"]]
    two["gamma"] = two["epochs"][1]["gamma"]
    report(tmp_path, two, record_of(changed(NONE, layers=2), 120.0, best=3))
    (validation, training), (gamma,) = (figure.axes for figure in drawn[:2])
    shown = {line.get_label(): list(line.get_ydata()) for line in validation.get_lines() if len(line.get_ydata()) > 1}
    assert shown == {
        "None": [122.0, 121.0, 120.0, 121.0],
        "NOISIN*": [101.0, 100.0, 101.0, 102.0],
    }
    assert [list(line.get_ydata()) for line in training.get_lines()] == [[300.5 / n for n in (1, 2, 3, 4)]] * 2
    paths = [list(line.get_ydata()) for line in gamma.get_lines()]
    assert paths == [[0.3 / n for n in (1, 2, 3, 4)], [0.2 / n for n in (1, 2, 3, 4)], [0.1, 0.1]]
    assert [text.get_text() for text in gamma.texts] == ["lower bound 0.1"]
    assert [text.get_text()[-7:] for text in gamma.get_legend().get_texts()] == ["layer 1", "layer 2"]


def test_many_seeds_share_an_entry_of_the_legend_and_keep_their_curves(tmp_path, drawn):
    report(tmp_path, *(record_of(changed(config, seed=seed)) for seed in range(4) for config in (NONE, DROPPED)))
    axes, legend = drawn[0].axes[1], drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["None", "Dropout"]
    assert len(axes.get_lines()) == 8
    (entry, *_) = legend.get_lines()
    none = [line for line in axes.get_lines() if line.get_color() == entry.get_color()]
    assert {(line.get_marker(), line.get_linewidth()) for line in none} == {("o", entry.get_linewidth())}
    assert [line.get_markevery() for line in none] == [[0, 3], [1, 3], [2, 3], [0, 3]]  # or they would hide one another
