"""The report, made from the committed records and nothing else, or from one's own: `make report`.

A folder with a table of each experiment, ours beside what was published, and of the claims (Markdown, CSV, LaTeX), the
figures, and `index.html`, one page with all of it that loads nothing from outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pandas as pd
from matplotlib.figure import Figure

from benchmarks import report as speed
from experiments.catalogue import EXPERIMENTS, Case, Experiment
from experiments.records import RESULTS, floor_of
from experiments.report.claims import MISSING, UNMEASURED, Judgement, judge
from experiments.report.page import Compared, Overview, Picture, Section, Speed, load_jinja2, page
from experiments.report.runs import (
    ESTIMATORS,
    OWN,
    Run,
    Score,
    candidates,
    choose,
    load_runs,
    name_of,
    number,
    runs_of,
    runs_of_case,
    scores,
)
from experiments.report.tables import (
    Line,
    claims_frame,
    csv_text,
    exact,
    frame,
    latex,
    lines,
    markdown_safe,
    summary,
    summary_frame,
)
from noisin import figures
from noisin.methods import METHODS
from noisin.runs.comparison import by_corpus, draw, labels
from noisin.system.errors import escape_unprintable, plural
from noisin.system.files import write_file
from noisin.tables import markdown

FOLDER = Path("report")
CURVES = 28  # in one figure of compared runs: more have no style of their own
MEASUREMENTS = speed.HERE / "results.json"


def write_report(out: Path = FOLDER, results: Path = RESULTS, measurements: Path = MEASUREMENTS) -> None:
    """Write the report.

    Parameters
    ----------
    out : Path
        Folder to write into.
    results : Path
        Folder of the folders of records.
    measurements : Path
        What `make bench` wrote; left out if it is not there.
    """
    load_jinja2()  # or all the rest would be written for nothing
    runs = load_runs(results)
    measured = speed.read_results(measurements) if measurements.exists() else None
    judgements = judge(runs, measured)
    sections = [_section(experiment, runs, out) for experiment in EXPERIMENTS.values() if runs_of(experiment, runs)]
    in_sections = {line.run for section in sections for line in section.lines if line.run}
    others = _compared([run for run in runs if run not in in_sections], out)
    timing = None if measured is None else _speed(measured, out)
    write_file(out / "index.html", page(runs, sections, others, judgements, _claims(judgements, out), timing))


def write_own_report(folder: Path, out: Path = FOLDER / "runs") -> None:
    """Write the report of one's own runs, beside what was published on their setting, if anything was.

    The paper's claims are in it where these runs are enough to judge them.

    Parameters
    ----------
    folder : Path
        Folder of run directories, at any depth.
    out : Path
        Folder to write into.

    Raises
    ------
    UserError
        If there is no such folder or no finished run in it, or a record is damaged.
    """
    load_jinja2()
    runs = load_runs(folder, OWN)
    published = [experiment for experiment in EXPERIMENTS.values() if experiment.published]
    sections = [_section(experiment, runs, out) for experiment in published if runs_of(experiment, runs)]
    judgements = [one for one in judge(runs) if one.verdict not in (MISSING, UNMEASURED)]
    own = escape_unprintable(str(folder))
    shown = page(runs, sections, _compared(runs, out), judgements, _claims(judgements, out), own=own)
    write_file(out / "index.html", shown)


def _claims(judgements: Sequence[Judgement], out: Path) -> Dict[str, str]:
    """Write the table of the claims, if there is one; as `_tables`."""
    if not judgements:
        return {}
    claims = claims_frame(judgements)
    return _tables("claims", "The paper's claims, judged from the records", claims, claims, out)


def _compared(runs: Sequence[Run], out: Path) -> List[Compared]:
    """Write the curves of these runs, and keep them for the page; by corpus."""
    of = {run.file: run for run in runs}
    found = []
    for index, alike in enumerate(by_corpus({name: run.record for name, run in of.items()}), 1):
        lines_of = {label: Line(Case(), of[name].config.method, of[name]) for label, name in labels(alike).items()}
        best = sorted(alike, key=lambda name: of[name].valid)[:CURVES]
        figure = draw({name: alike[name] for name in best})
        picture = _picture(figure, out / f"compared-{index}.svg", _course([of[name] for name in best]))
        found.append(Compared(of[best[0]].record["corpus"], lines_of, picture, len(alike) > CURVES))
    return found


def _section(experiment: Experiment, runs: Sequence[Run], out: Path) -> Section:
    """Write an experiment's tables and figures, and keep them for the page."""
    found = lines(experiment, runs_of(experiment, runs), runs)
    title = experiment.title + ("; ours beside the published" if experiment.published else "")
    files = _tables(experiment.name, title, frame(experiment, found), exact(found), out)
    overview = _overview(experiment, runs, out) if experiment.summarised else None
    drawn = []
    for index, case in enumerate(experiment.cases, 1):
        of_case = runs_of_case(experiment, case, runs)
        if of_case:
            name = experiment.name + (f"-case{index}" if len(experiment.cases) > 1 else "")
            drawn.append((case.title, _draw(name, of_case, runs_of(experiment, runs), out)))
    path, words = out / f"{experiment.name}-test.svg", "Test perplexities; the table has the numbers."
    drawn.insert(0, ("", [_picture(draw_tests(experiment, runs), path, words)]))
    return Section(experiment, found, files, drawn, overview)


def _overview(experiment: Experiment, runs: Sequence[Run], out: Path) -> Overview:
    """Write the table of one row a case, and keep it for the page."""
    title = f"{experiment.title}: clean / limit (published)"
    shown = summary_frame(experiment, runs)
    return Overview(summary(experiment, runs), _tables(f"{experiment.name}-summary", title, shown, shown, out))


def _tables(name: str, title: str, shown: pd.DataFrame, full: pd.DataFrame, out: Path) -> Dict[str, str]:
    """Write a table in its three forms; returns their contents by the names of the files."""
    contents = {
        f"{name}.md": f"**{title}**\n\n{markdown(markdown_safe(shown))}\n",
        f"{name}.csv": csv_text(full),
        f"{name}.tex": latex(shown, title),
    }
    for file, content in contents.items():
        write_file(out / file, content)
    return contents


def draw_tests(experiment: Experiment, runs: Sequence[Run]) -> Figure:
    """Draw the test perplexities: beside published ones each method's best variant, otherwise every variant."""
    rows_of = _beside_published if experiment.published else _of_variants
    panels = {case.title: rows_of(experiment, case, runs) for case in experiment.cases}
    chosen = "; each method's variant by validation" if experiment.published else ""
    return figures.test_perplexities(panels, experiment.title + chosen)


def _beside_published(experiment: Experiment, case: Case, runs: Sequence[Run]) -> List[Dict[str, Any]]:
    chosen = {method: choose(candidates(experiment, case, runs), method) for method in experiment.methods}
    return [
        _row(METHODS[method].title, method, score.runs if score else (), case.paper.get(method))
        for method, score in chosen.items()
    ]


def _of_variants(experiment: Experiment, case: Case, runs: Sequence[Run]) -> List[Dict[str, Any]]:
    in_order = lines(experiment, runs_of_case(experiment, case, runs))
    variants = scores([line.run for line in in_order if line.run])
    return [_row(_label(score, variants), score.config.method, score.runs) for score in variants]


def _label(score: Score, variants: Sequence[Score]) -> str:
    """Return its method, and what distinguishes it from other variants of the method."""
    method = METHODS[score.config.method]
    configs = [one.config for one in variants if one.config.method == method.name]
    differing = [one for one in method.regularisers if len(set(map(one.described, configs))) > 1]
    return f"{method.title} {'; '.join(one.described(score.config) for one in differing)}".strip()


def _row(label: str, method: str, runs: Sequence[Run], paper: Optional[float] = None) -> Dict[str, Any]:
    tests = [{estimator: run.test(estimator) for estimator in ESTIMATORS} for run in runs]
    return {"label": label, "method": method, "paper": paper, "runs": tests}


def _draw(name: str, runs: Sequence[Run], compared_with: Sequence[Run], out: Path) -> List[Picture]:
    """Write the curves of these runs: perplexities, and gamma's path where it is learned."""
    records, others = ([run.record for run in found] for found in (runs, compared_with))
    figure = figures.figure2(records, floor=floor_of(records), compared_with=others)
    drawn = [_picture(figure, out / f"{name}-curves.svg", _course(runs))]
    learned = [run.record for run in runs if run.config.acts("lower_bound") and run.epochs]
    if learned:
        words = f"Learned gamma against the epoch. {_gammas(runs)}"
        drawn.append(_picture(figures.gamma_paths(learned), out / f"{name}-gamma.svg", words))
    return drawn


def _picture(figure: Figure, path: Path, words: str) -> Picture:
    """Write a figure as SVG, and keep it for the page."""
    figures.save(figure, path)
    return Picture(path.read_bytes(), "svg+xml", words)


def _course(runs: Sequence[Run]) -> str:
    """What the curves of these runs show, in words."""
    said = {name: _ends(runs, f"{name}_ppl") for name in ("valid", "train")}
    return f"Perplexity against the epoch. Validation: {said['valid']} Training: {said['train']}"


def _ends(runs: Sequence[Run], key: str) -> str:
    """What the curves show, in words."""
    said = []
    for run in runs:
        values, ends = [epoch[key] for epoch in run.epochs], "no epoch was finished"
        if values:
            lowest, last = number(min(values)), number(values[-1])
            ends = f"lowest {lowest}, at the end {last} after {plural(len(values), 'epoch')}"
        said.append(f"{name_of(run.config)}, seed {run.config.seed}: {ends}.")
    return " ".join(said)


def _gammas(runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        if run.config.acts("lower_bound") and run.epochs:
            first, last = (", ".join(f"{gamma:.3f}" for gamma in run.epochs[index]["gamma"]) for index in (0, -1))
            said.append(f"{name_of(run.config)}, seed {run.config.seed}: from {first} after the first epoch to {last}.")
    return " ".join(said)


def _speed(measured: Mapping[str, Any], out: Path) -> Speed:
    """Write the figures of the measurements, and keep them and their tables for the page."""
    hardware, versions = measured["hardware"], measured["versions"]
    facts = {**hardware, **{name: version for name, version in versions.items() if version is not None}}
    startup = measured["startup_seconds"]
    if startup is not None:
        facts["start to first step"] = f"{startup:.1f} s"
    tables: List[Tuple[str, pd.DataFrame]] = []
    for workload in speed.workloads_in(measured):
        table = speed.table(measured, workload).rename(columns={"": "contender"})
        tables.append((f"{speed.TITLES[workload]}: words a second, median (least to most), and peak memory", table))
        ratios = speed.ratios(measured, workload)
        if not ratios.empty:
            tables.append((f"{speed.TITLES[workload]}: ratios", ratios))
    speed.draw(measured, out)
    said = "Words a second of every contender; the tables have the numbers."
    pictures = [Picture((out / speed.SPEED_PICTURE).read_bytes(), "png", said)]
    if measured["growth"]:
        said = "Milliseconds a step and peak memory against one dimension at a time."
        pictures.append(Picture((out / speed.GROWTH_PICTURE).read_bytes(), "png", said))
    return Speed(facts, tables, pictures)
