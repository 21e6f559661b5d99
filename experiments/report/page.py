"""The report as one page that loads nothing from outside: what `page.html.j2` shows, which escapes every string."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import pandas as pd

from experiments.catalogue import TABLE2, Case, Experiment
from experiments.report.claims import APART, CLAIMS, LATER, Evidence, Judgement, counted
from experiments.report.runs import Mention, Run, network_of
from experiments.report.tables import NOT_RUN, TESTS, Line, cells, columns
from noisin.config import Config
from noisin.methods import METHODS
from noisin.system.errors import UserError, plural

SIGNS = {"holds": "✓", "fails": "✗", "undecided": "≈"}


@dataclass(frozen=True)
class Picture:
    """A figure: its bytes, its subtype of image/, and what it shows in words."""

    content: bytes
    kind: str
    words: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Parameters
    ----------
    pieces : sequence of str and Mention
        Its text; mentions lead to their runs.
    number : bool
        Whether it stands to the right, as numbers do.
    kind : str
        Of a verdict, its class; `sign` stands before it.
    notes : sequence of (title, text)
        What stands behind the text, with a title that explains it.
    """

    pieces: Evidence
    number: bool = False
    kind: str = ""
    notes: Sequence[Tuple[str, str]] = ()

    @property
    def sign(self) -> str:
        return SIGNS.get(self.kind, "")


Groups = Sequence[Tuple[str, Sequence[Sequence[Cell]]]]  # a heading, which may be empty, and the rows below it


@dataclass(frozen=True)
class Overview:
    """What each method reaches in each case, and the files of that table by name."""

    rows: Sequence[Tuple[Case, Mapping[str, Evidence]]]
    files: Mapping[str, str]

    @property
    def columns(self) -> Sequence[str]:
        return ("setting", *self.rows[0][1])

    @property
    def groups(self) -> Groups:
        rows = [[_cell(case.title), *(Cell(of, True) for of in reached.values())] for case, reached in self.rows]
        return [("", rows)]


@dataclass(frozen=True)
class Section:
    """What the page shows of one experiment: its table, the table's files by name, figures by title of the case."""

    experiment: Experiment
    lines: Sequence[Line]
    files: Mapping[str, str]
    drawn: Sequence[Tuple[str, Sequence[Picture]]]
    overview: Optional[Overview] = None

    @property
    def caption(self) -> str:
        rivals = {line.method for line in self.lines if line.rivals}
        beside = ", ours beside the published" if self.experiment.published else ""
        said = [f"Perplexity a word{beside}; γ is the spread at the best epoch."]
        said += ["★ marks the variant that validates best of those that were run."] if rivals else []
        found = [METHODS[name] for name in METHODS if name in rivals and METHODS[name].columns]
        return " ".join([*said, *(f"{method.title}'s {', '.join(method.columns)}." for method in found)])

    @property
    def groups(self) -> Groups:
        found: Dict[str, List[List[Cell]]] = {}
        for line in self.lines:
            found.setdefault(line.case.title, []).append(table_row(line, self.experiment.published))
        return list(found.items())

    @property
    def headings(self) -> Sequence[str]:
        return _headings(self.experiment.published)


@dataclass(frozen=True)
class Compared:
    """What the page shows of runs of one corpus beside one another: lines by label, and their curves."""

    corpus: str
    lines: Mapping[str, Line]
    picture: Picture
    drawn_in_part: bool = False

    @property
    def caption(self) -> str:
        drawn = "; the figure has those that validate best" if self.drawn_in_part else ""
        return f"{self.corpus}: perplexity a word; γ is the spread at the best epoch{drawn}."

    @property
    def groups(self) -> Groups:
        rows = ((label, table_row(line, published=False)) for label, line in self.lines.items())
        return [("", [[Cell((label,), notes=row[0].notes), *row[1:]] for label, row in rows])]

    @property
    def headings(self) -> Sequence[str]:
        return _headings(published=False)


@dataclass(frozen=True)
class Speed:
    """What the page shows of `make bench`: facts of the machine, tables by caption, figures."""

    facts: Mapping[str, Any]
    tables: Sequence[Tuple[str, pd.DataFrame]]
    drawn: Sequence[Picture]

    @property
    def groups(self) -> Iterator[Tuple[str, Sequence[str], Groups]]:
        for caption, table in self.tables:
            rows = [[_cell(row[0]), *(_cell(value, True) for value in row[1:])] for row in table.values]
            yield caption, list(map(str, table.columns)), [("", rows)]


def load_jinja2() -> ModuleType:
    """Import Jinja2, which is an extra; raises UserError where it is missing."""
    try:
        return import_module("jinja2")
    except ImportError as error:
        raise UserError(f"the report needs Jinja2 ({error}): pip install '.[report]' in noisin's folder") from None


def page(
    runs: Sequence[Run],
    sections: Sequence[Section],
    compared: Sequence[Compared],
    judgements: Sequence[Judgement],
    claims: Mapping[str, str],
    speed: Optional[Speed] = None,
    own: str = "",
) -> str:
    """The whole page.

    Parameters
    ----------
    runs : sequence of Run
        All of them; each gets its details.
    sections : sequence of Section
        The experiments that have records.
    compared : sequence of Compared
        By corpus, the runs that belong to none; of the reader's own, all.
    judgements : sequence of Judgement
        Without any, the page has no claims.
    claims : mapping
        Files of the table of claims, by name.
    speed : Speed, optional
    own : str, default none
        The folder that the runs lie in, if they are the reader's own and not those of the paper's experiments.
    """
    jinja2 = load_jinja2()
    others = [("others", "All runs" if own else "Other runs")] if compared else []
    paper = [("claims", "The paper's claims")] if judgements else []
    paper += [(one.experiment.name, one.experiment.title) for one in sections]
    contents = [*others, *paper] if own else [*paper, *others]
    contents += [("speed", "Speed")] if speed else []
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        are_numbers=_are_numbers,
        data=_data,
        flat=_flat,
        title_of_run=_title,
        record_facts=partial(_record_facts, folder=own or "experiments/results"),
        epochs=_epochs,
    )
    return environment.get_template("page.html.j2").render(
        contents=[*contents, ("runs", "Each run")],
        own=own,
        main=() if own else [drawn for one in sections if one.experiment == TABLE2 for drawn in one.drawn[0][1]],
        dates=_dates(runs),
        verdicts=_verdicts(judgements),
        claims=_claims(judgements),
        judged=len(judgements),
        claims_files=claims,
        apart=f"{APART:g}",
        sections=sections,
        compared=compared,
        speed=speed,
        runs=runs,
    )


def _dates(runs: Sequence[Run]) -> str:
    """How many runs, when and on what."""
    finished = sorted(run.record["finished"][:10] for run in runs)
    between = " to ".join(dict.fromkeys((finished[0], finished[-1])))
    hardware = "; ".join(sorted({run.record["hardware"]["cpu"] for run in runs}))
    return f"{plural(len(runs), 'run')}, finished {between}, on {hardware}."


# ---- tables --------------------------------------------------------------------------------------------------------


def _cell(value: Any, number: bool = False) -> Cell:
    """A cell of any value, as text."""
    return Cell((_text(value),), number)


def _text(value: Any) -> str:
    """Any value as text; a dash where there is nothing."""
    return "–" if value is None or value == "-" else str(value)


def _are_numbers(groups: Groups, column: int) -> bool:
    """Whether a column has numbers: its heading then stands to the right too."""
    return column > 0 and any(row[column].number for _, rows in groups for row in rows)


def _data(content: bytes, kind: str) -> str:
    """An address that is the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _verdicts(judgements: Sequence[Judgement]) -> Groups:
    """One row a claim, the paper's before its later version's: how often it holds and fails, by all measures."""
    papers: List[List[Cell]] = []
    later: List[List[Cell]] = []
    for claim, statement in CLAIMS.items():
        found = [one.verdict for one in judgements if one.claim == claim]
        if not found:
            continue
        alike = found[0] if len(set(found)) == 1 and found[0] in SIGNS else ""
        row = [Cell((f"({claim}) {statement}",)), Cell((counted(found),), kind=alike)]
        (later if claim in LATER else papers).append(row)
    groups = [("", papers), ("The paper's later version (Dieng et al., 2018)", later)]
    return [(heading, rows) for heading, rows in groups if rows]


def _claims(judgements: Sequence[Judgement]) -> Groups:
    return [
        (f"({claim}) {statement}", [_judgement(one) for one in judgements if one.claim == claim])
        for claim, statement in CLAIMS.items()
        if any(one.claim == claim for one in judgements)
    ]


def _judgement(judgement: Judgement) -> List[Cell]:
    kind = judgement.verdict if judgement.verdict in SIGNS else "missing"
    verdict = Cell((judgement.verdict,), kind=kind)
    return [
        Cell((judgement.setting,)),
        _cell(judgement.measure),
        verdict,
        Cell(judgement.evidence),
        _cell(judgement.paper),
    ]


def _headings(published: bool) -> Sequence[str]:
    return ("method", *("γ" if column == "gamma" else column for column in columns(published)))


def table_row(line: Line, published: bool) -> List[Cell]:
    """One line of an experiment's table as the page shows it; perplexities of ours lead to the run."""
    shown = cells(line)
    notes = [(name, shown[name]) for name in METHODS[line.method].columns if name in shown]
    notes += [("perplexity of log p(x)", shown["test marginal"])] if "test marginal" in shown else []
    notes += [("chosen by validation", "★")] if line.rivals and line.chosen else []
    row = [Cell((shown["method"],), notes=notes)]
    for column in columns(published):
        text = _text(shown.get(column, "-"))
        ours = line.run is not None and column in ("valid", *TESTS)
        piece = Mention(text, line.run) if line.run is not None and ours else text
        kind = "missing" if column == "status" and text == NOT_RUN else ""
        row.append(Cell((piece,), column not in ("dtype", "status"), kind))
    return row


# ---- the runs ------------------------------------------------------------------------------------------------------


def _title(config: Config) -> str:
    network = f"{network_of(config)}, {config.hidden} units"
    return f"{METHODS[config.method].title}: {network}, seed {config.seed}, {config.dtype}"


def _record_facts(run: Run, folder: str) -> Dict[str, Any]:
    """All of a record but its configuration and epochs, which are shown by themselves."""
    rest = {name: value for name, value in run.record.items() if name not in ("epochs", "config")}
    return {"record": f"{folder}/{run.file}", **rest}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[Tuple[str, str]]:
    """Names and values as text, nested ones with both names."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}: ".replace("_", " "))
        else:
            shown = (", ".join(map(str, value)) or None) if isinstance(value, (list, dict)) else value
            yield before + str(name).replace("_", " "), _text(shown)


def _epochs(run: Run) -> Groups:
    rows = [
        [
            _cell(f"{epoch['epoch']}" + (" ★" if epoch["epoch"] == run.record["best_epoch"] else "")),
            _cell(f"{epoch['train_ppl']:.2f}", True),
            _cell(f"{epoch['valid_ppl']:.2f}", True),
            _cell(", ".join(f"{gamma:.4f}" for gamma in epoch["gamma"]) or None, True),
            _cell(f"{epoch['tokens_per_second']:,.0f}", True),
            _cell(f"{epoch['seconds']:.1f}", True),
        ]
        for epoch in run.epochs
    ]
    return [("", rows)]
