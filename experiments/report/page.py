"""The report's page: one HTML file that loads nothing from outside. Every string from a record is escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import pandas as pd

from experiments.catalogue import Case, Experiment
from experiments.report.claims import APART, CLAIMS, Evidence, Judgement
from experiments.report.runs import Mention, Run, network_of
from experiments.report.tables import COLUMNS, NOT_RUN, TESTS, Line, cells
from noisin.methods import METHODS

STYLE = Path(__file__).resolve().parent / "page.css"
# The browser, too, is told to load nothing: a string that slipped through could not fetch or run anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
INTRODUCTION = """Recurrent language models regularised by unbiased noise on their hidden state (NOISIN), against the
deterministic network (None) and variational dropout (Dropout): a reproduction of “Noise-based regularizers for
recurrent neural networks” on MXNet and Gluon. Everything below is computed from the committed records; a perplexity
of one run links to that run. Lower perplexity is better."""
READING = """Test perplexity is that of the epoch that validates best. <em>Clean</em>: noise off. <em>Averaged</em>:
predictions averaged over S trajectories of the noise, as the paper does; at a finite S it reads too high, more so for
dropout than for NOISIN. <em>Limit</em>: the same for infinitely many trajectories, by which methods are compared; ≈
marks one that is estimated from the bound and the average of an older record, to about 0.25 %."""
HEADINGS = ("method", *("γ" if column == "gamma" else column for column in COLUMNS))
SIGNS = {"holds": "✓", "fails": "✗", "undecided": "≈"}


@dataclass(frozen=True)
class Picture:
    """A figure: its bytes, its subtype of image/, and what it shows in words."""

    content: bytes
    kind: str
    words: str


@dataclass(frozen=True)
class Overview:
    """What each method reaches in each case, and the files of that table by name."""

    rows: Sequence[Tuple[Case, Mapping[str, Evidence]]]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """What the page shows of one experiment: its table, the table's files by name, figures by title of the case."""

    experiment: Experiment
    lines: Sequence[Line]
    files: Mapping[str, str]
    drawn: Sequence[Tuple[str, Sequence[Picture]]]
    overview: Optional[Overview] = None


@dataclass(frozen=True)
class Speed:
    """What the page shows of `make bench`: facts of the machine, tables by caption, figures."""

    facts: Mapping[str, Any]
    tables: Sequence[Tuple[str, pd.DataFrame]]
    drawn: Sequence[Picture]


def page(
    runs: Sequence[Run],
    sections: Sequence[Section],
    others: Sequence[Line],
    judgements: Sequence[Judgement],
    claims: Mapping[str, str],
    speed: Optional[Speed] = None,
) -> str:
    """The whole page.

    Parameters
    ----------
    runs : sequence of Run
        All of them; each gets its details.
    sections : sequence of Section
        The experiments that have records.
    others : sequence of Line
        Runs that belong to none.
    judgements : sequence of Judgement
    claims : mapping
        Files of the table of claims, by name.
    speed : Speed, optional
    """
    parts = [("claims", "The paper's claims", _claims(judgements, claims))]
    parts += [(section.experiment.name, section.experiment.title, _experiment(section)) for section in sections]
    if others:
        parts.append(("others", "Other runs", _others(others)))
    if speed is not None:
        parts.append(("speed", "Speed", _speed(speed)))
    parts.append(("runs", "Runs", "\n".join(_run(run) for run in runs)))
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in parts)
    body = "\n".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}\n</section>' for name, title, content in parts
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="color-scheme" content="light dark">
<title>noisin: report</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<a class="skip" href="#claims">Skip to the results</a>
<header>
<h1>NOISIN: ours beside the paper's</h1>
<p>{INTRODUCTION}</p>
<p>{READING}</p>
<p>{_dates(runs)}</p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
</body>
</html>
"""


def _dates(runs: Sequence[Run]) -> str:
    """How many runs, when and on what."""
    finished = sorted(str(run.record["finished"])[:10] for run in runs if run.record.get("finished"))
    between = f", finished from {finished[0]} to {finished[-1]}" if finished else ""
    hardware = {_machine(run) for run in runs} - {""}
    return escape(f"{len(runs)} runs{between}" + (f", on {'; '.join(sorted(hardware))}" if hardware else "") + ".")


def _machine(run: Run) -> str:
    hardware = run.record.get("hardware")
    return str(hardware.get("cpu", "")) if isinstance(hardware, dict) else ""


# ---- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell's HTML, and whether it stands to the right as numbers do."""

    html: str
    number: bool = False


def _text(value: Any) -> str:
    """Any value as HTML text; a dash where there is nothing."""
    text = "–" if value is None or value == "-" else str(value)
    return escape(text)


Group = Tuple[str, Sequence[Sequence[Cell]]]  # a heading as HTML, which may be empty, and the rows below it


def _table(name: str, caption: str, columns: Sequence[str], groups: Iterable[Group]) -> str:
    """A table in a box that scrolls by itself; the first cell of each row is its header."""
    numeric = [False] * len(columns)
    bodies = []
    for heading, rows in groups:
        head = f'<th scope="rowgroup" colspan="{len(columns)}"><span class="heading">{heading}</span></th>'
        lines = [f"<tr>{head}</tr>"] if heading else []
        for first, *rest in rows:
            numeric = [numeric[0], *(was or cell.number for was, cell in zip(numeric[1:], rest))]
            data = "".join(f"<td{_right(cell.number)}>{cell.html}</td>" for cell in rest)
            lines.append(f'<tr><th scope="row">{first.html}</th>{data}</tr>')
        bodies.append("<tbody>" + "\n".join(lines) + "</tbody>")
    head = "".join(f'<th scope="col"{_right(right)}>{escape(column)}</th>' for column, right in zip(columns, numeric))
    return (
        f'<div class="box" role="region" tabindex="0" aria-labelledby="{name}-caption">\n<table>\n'
        f'<caption id="{name}-caption">{caption}</caption>\n<thead><tr>{head}</tr></thead>\n' + "\n".join(bodies) + "\n"
        "</table>\n</div>"
    )


def _right(right: bool) -> str:
    return ' class="number"' if right else ""


def _downloads(files: Mapping[str, str]) -> str:
    """Links that hand out the table's files, which the page carries in itself."""
    kinds = {"md": "Markdown", "csv": "CSV", "tex": "LaTeX"}
    links = [
        f'<a download="{escape(name)}" href="{_data(content.encode(), "text/plain;charset=utf-8")}">'
        f"{kinds[name.rsplit('.', 1)[1]]}</a>"
        for name, content in files.items()
    ]
    return f'<p class="files">This table as {", ".join(links)}</p>'


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _to(run: Run, html: str) -> str:
    return f'<a href="#{run.anchor}">{html}</a>'


# ---- the claims ----------------------------------------------------------------------------------------------------


def _claims(judgements: Sequence[Judgement], files: Mapping[str, str]) -> str:
    groups = []
    for claim, statement in CLAIMS.items():
        own = [judgement for judgement in judgements if judgement.claim == claim]
        groups.append((f"({claim}) {escape(statement)}", [_judgement(judgement) for judgement in own]))
    caption = (
        "The choice between several runs of a method is by validation perplexity alone. A number without ± is of one "
        "seed. A difference within two standard errors is undecided; for them the deviation over seeds is pooled over "
        "all rows that have several, and stands for the others too. Of two deviations over seeds one must be "
        f"{APART:g} times the other. The last column is the verdict by the paper's own numbers."
    )
    return _table("claims", caption, ("setting", "by", "verdict", "ours", "paper"), groups) + _downloads(files)


def _judgement(judgement: Judgement) -> List[Cell]:
    kind = judgement.verdict if judgement.verdict in SIGNS else "missing"
    sign = f'<span aria-hidden="true">{SIGNS[kind]}</span> ' if kind in SIGNS else ""
    verdict = f'<span class="verdict {kind}">{sign}{escape(judgement.verdict)}</span>'
    evidence = "".join(_evidence(judgement.evidence))
    measure, paper = _text(judgement.measure), _text(judgement.paper)
    return [Cell(escape(judgement.setting)), Cell(measure), Cell(verdict), Cell(evidence), Cell(paper)]


def _evidence(evidence: Evidence) -> Iterator[str]:
    for piece in evidence:
        yield _to(piece.run, escape(piece.text)) if isinstance(piece, Mention) else escape(piece)


# ---- the experiments -----------------------------------------------------------------------------------------------


def _experiment(section: Section) -> str:
    name = section.experiment.name
    groups: Dict[str, List[List[Cell]]] = {}
    for line in section.lines:
        groups.setdefault(line.case.title, []).append(table_row(line))
    rivals = {line.method for line in section.lines if line.rivals}
    caption = "Perplexity a word, ours beside the published; γ is the spread at the best epoch."
    caption += " ★ marks the variant that validates best of those that were run." if rivals else ""
    columns = {method: list(METHODS[method].columns) for method in sorted(rivals, key=list(METHODS).index)}
    caption += "".join(f" {METHODS[name].title}'s {', '.join(shown)}." for name, shown in columns.items() if shown)
    titled = [(escape(title), rows) for title, rows in groups.items()]
    parts = [] if section.overview is None else [_overview(name, section.overview)]
    parts += [_table(name, caption, HEADINGS, titled), _downloads(section.files)]
    for title, pictures in section.drawn:
        parts += [f"<h3>{escape(title)}</h3>"] if title else []
        parts.append(_pictures(pictures))
    return "\n".join(parts)


def _overview(name: str, overview: Overview) -> str:
    caption = "Test perplexity, clean / limit (published). ± is the standard deviation over seeds; below is each run."
    rows = [
        [Cell(escape(case.title)), *(Cell("".join(_evidence(pieces)), True) for pieces in reached.values())]
        for case, reached in overview.rows
    ]
    columns = ("setting", *overview.rows[0][1])
    return _table(f"{name}-summary", caption, columns, [("", rows)]) + _downloads(overview.files)


def table_row(line: Line) -> List[Cell]:
    """One line of an experiment's table as the page shows it; perplexities of ours lead to the run."""
    shown = cells(line)
    star = ' <span title="chosen by validation">★</span>' if line.rivals and line.chosen else ""
    strength = "".join(
        f' <span title="{name}">{escape(shown[name])}</span>' for name in METHODS[line.method].columns if name in shown
    )
    row = [Cell(escape(shown["method"]) + strength + star)]
    for column in COLUMNS:
        value = shown.get(column, "-")
        ours = line.run is not None and column in ("valid", *TESTS)
        html = _to(line.run, _text(value)) if line.run is not None and ours else _text(value)
        if column == "status" and value == NOT_RUN:
            html = f'<span class="verdict missing">{html}</span>'
        row.append(Cell(html, column not in ("dtype", "status")))
    return row


def _others(lines: Sequence[Line]) -> str:
    caption = "Runs that belong to none of the experiments above, as trials; no number was published for them."
    return _table("others", caption, HEADINGS, [("", [table_row(line) for line in lines])])


def _pictures(pictures: Sequence[Picture]) -> str:
    images = [
        f'<figure><img src="{_data(picture.content, "image/" + picture.kind)}" alt="{escape(picture.words)}"></figure>'
        for picture in pictures
    ]
    return f'<div class="figures">{"".join(images)}</div>'


# ---- speed ---------------------------------------------------------------------------------------------------------


def _speed(speed: Speed) -> str:
    parts = ["<p>Whole training steps, data to update, measured by <code>make bench</code>.</p>", _facts(speed.facts)]
    for index, (caption, table) in enumerate(speed.tables, 1):
        rows = [[Cell(_text(row[0])), *(Cell(_text(value), True) for value in row[1:])] for row in table.values]
        parts.append(_table(f"speed-{index}", escape(caption), list(map(str, table.columns)), [("", rows)]))
    return "\n".join([*parts, _pictures(speed.drawn)])


# ---- the runs ------------------------------------------------------------------------------------------------------


def _run(run: Run) -> str:
    """All of a record: facts, configuration, epochs."""
    facts = {"record": f"experiments/results/{run.file}"}
    facts.update((name, value) for name, value in run.record.items() if name not in ("epochs", "config"))
    config = run.config
    network = f"{network_of(config)}, {config.hidden} units"
    title = f"{METHODS[config.method].title}: {network}, seed {config.seed}, {config.dtype}"
    return f"""<article id="{run.anchor}" tabindex="-1">
<h3>{escape(title)}</h3>
<p class="name">{escape(config.name)}</p>
{_facts(facts)}
<details><summary>Configuration</summary>
{_facts(run.record["config"])}
</details>
<details><summary>Epochs: {len(run.epochs)}</summary>
{_epochs(run)}
</details>
</article>"""


def _facts(values: Mapping[str, Any]) -> str:
    """Names and values, nested ones with both names."""
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in _flat(values))
    return f'<dl class="facts">{pairs}</dl>'


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[Tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}: ".replace("_", " "))
        else:
            shown = (", ".join(map(str, value)) or None) if isinstance(value, (list, dict)) else value
            yield before + str(name).replace("_", " "), shown


def _epochs(run: Run) -> str:
    columns = ("epoch", "training", "validation", "γ", "words/s", "seconds")
    rows = [
        [
            Cell(f"{epoch['epoch']}" + (" ★" if epoch["epoch"] == run.record["best_epoch"] else "")),
            Cell(f"{epoch['train_ppl']:.2f}", True),
            Cell(f"{epoch['valid_ppl']:.2f}", True),
            Cell(_text(", ".join(f"{gamma:.4f}" for gamma in epoch["gamma"]) or None), True),
            Cell(f"{epoch['tokens_per_second']:,.0f}", True),
            Cell(f"{epoch['seconds']:.1f}", True),
        ]
        for epoch in run.epochs
    ]
    caption = "Perplexity after each epoch (★ the best). Words a second: of a machine that may have been shared."
    return _table(f"{run.anchor}-epochs", caption, columns, [("", rows)])
