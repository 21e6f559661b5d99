"""Tables of runs, ours beside what was published, and of the claims, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import pandas as pd

from experiments.catalogue import Case, Experiment
from experiments.report.claims import CLAIMS, Evidence, Judgement, counted, plain
from experiments.report.runs import (
    ESTIMATORS,
    Mention,
    Run,
    Score,
    candidates,
    choose,
    competing,
    in_case,
    number,
    variant_of,
)
from noisin.config import Config
from noisin.methods import METHODS
from noisin.system.errors import plural
from noisin.tables import escape_markdown

NOT_RUN = "not run yet"


@dataclass(frozen=True, eq=False)
class Line:
    """One line of an experiment's table: a run beside the published number, or a variant that has none yet.

    Parameters
    ----------
    case : Case
    method : str
    run : Run or None
    chosen : bool
        Whether its variant has the lowest validation perplexity of the method's, those of the searches included.
    rivals : bool
        Whether there are several to choose from.
    final : bool
        Whether all of them were run.
    config : Config or None
        Of the run, or of the one that is missing.
    """

    case: Case
    method: str
    run: Optional[Run] = None
    chosen: bool = False
    rivals: bool = False
    final: bool = True
    config: Optional[Config] = None


def lines(experiment: Experiment, runs: Sequence[Run], among: Sequence[Run] = (), **narrowing: Any) -> List[Line]:
    """These runs of an experiment, narrowed as they were, by case and method; a variant without one has a line too.

    What is chosen is so among these runs and, of `among`, those of the experiment's searches.
    """
    found = []
    for case in experiment.cases:
        of_case = in_case(case, runs)
        compared = competing([*of_case, *candidates(experiment, case, among)])
        for method in experiment.methods:
            of_method = [run for run in of_case if run.config.method == method]
            best, have = choose(compared, method), {run.variant for run in of_method}
            declared = [config for config in experiment.configs([method], **narrowing) if case.covers(config)]
            missing = [config for config in declared if variant_of(config) not in have]
            known = {run.variant for run in (*of_case, *compared) if run.config.method == method}
            rivals = len(known | set(map(variant_of, declared))) > 1
            of_variants = [
                Line(case, method, run, best is not None and run in best.runs, rivals, not missing, run.config)
                for run in of_method
            ]
            of_variants += [Line(case, method, rivals=rivals, final=False, config=config) for config in missing]
            found += sorted(of_variants, key=_order)
    return found


def _order(line: Line) -> Tuple[Any, ...]:
    assert line.config is not None
    described = METHODS[line.method].described(line.config)
    return line.config.gamma, described, line.config.seed, line.config.dtype


def cells(line: Line) -> Dict[str, str]:
    """A line as it is shown."""
    published = line.case.paper.get(line.method)
    shown = {name: str(value) for name, value in line.case.options.items()}
    shown["method"] = METHODS[line.method].title
    run = line.run
    if line.rivals and line.config is not None:
        shown["chosen"] = "-" if run is None else _choice(line)
        described = {name: show(line.config) for name, show in METHODS[line.method].columns.items()}
        shown.update((name, value) for name, value in described.items() if value)
        if line.config.acts("gamma") and not line.config.acts("lower_bound"):
            shown["gamma"] = ", ".join(f"{gamma:.3f}" for gamma in line.config.layer_gammas())
    shown["published"] = "-" if published is None else number(published)
    if run is None:
        return {**shown, "status": NOT_RUN}
    marginal = (run.record["test_ppl"] or {}).get("marginal")
    shown.update({"test marginal": number(marginal)} if marginal else {})
    return {**shown, **{name: show(run) for name, show in COLUMNS.items()}}


def _choice(line: Line) -> str:
    return "no" if not line.chosen else "yes" if line.final else "so far"


TESTS = ("test clean", "test averaged", "test limit")
# The columns that every run has, in order, and what stands in them.
COLUMNS: Dict[str, Callable[[Run], str]] = {
    "gamma": lambda run: ", ".join(f"{gamma:.3f}" for gamma in run.record["gamma"]) or "-",
    "seed": lambda run: str(run.config.seed),
    "dtype": lambda run: run.config.dtype,
    "best epoch": lambda run: f"{run.record['best_epoch'] or '-'} of {len(run.epochs)}",
    "valid": lambda run: number(run.valid),
    "test clean": lambda run: number(run.test("clean")),
    "test averaged": lambda run: number(run.test("averaged")),
    "test limit": lambda run: run.shown("limit"),
    "status": lambda run: str(run.record["status"]),
}


def columns(published: bool, marginal: bool = False) -> List[str]:
    """The names of the columns in order, with those of what only some experiments or runs have."""
    names = list(COLUMNS)
    at = names.index("status")
    names[at:at] = ["test marginal"] * marginal + ["published"] * published
    return names


def frame(experiment: Experiment, found: Sequence[Line]) -> pd.DataFrame:
    """The table as it is shown, in words and rounded numbers; a dash where there is nothing."""
    shown = [cells(line) for line in found]
    columns_of = [name for line in found for name in METHODS[line.method].columns]
    among_rivals = [name for name in dict.fromkeys(("chosen", *columns_of)) if any(name in row for row in shown)]
    common = columns(experiment.published, any("test marginal" in row for row in shown))
    names = [*experiment.cases[0].options, "method", *among_rivals, *common]
    table = pd.DataFrame(shown, columns=names)
    return table.astype(object).fillna("-")


def summary(experiment: Experiment, runs: Sequence[Run]) -> List[Tuple[Case, Dict[str, Evidence]]]:
    """For each case what each method reaches, as 'clean / limit (published)': means over seeds of its best variant."""
    found = []
    for case in experiment.cases:
        reached: Dict[str, Evidence] = {}
        for method in experiment.methods:
            score, published = choose(candidates(experiment, case, runs), method), case.paper.get(method)
            beside = () if published is None else (f" ({number(published)})",)
            reached[METHODS[method].title] = (*((NOT_RUN,) if score is None else _both(score)), *beside)
        found.append((case, reached))
    return found


def _both(score: Score) -> Evidence:
    """Test perplexity by each estimator, with the deviation over seeds where there are several."""
    pieces: List[Union[str, Mention]] = []
    for estimator in ESTIMATORS:
        pieces += [" / "] if pieces else []
        pieces += [Mention(score.mean(estimator), score.runs[0]) if len(score.runs) == 1 else score.mean(estimator)]
    return tuple(pieces)


def summary_frame(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """The summary as a table of text, a row for each case and a column for each method."""
    rows = [
        {
            **{name: str(value) for name, value in case.options.items()},
            **{name: plain(pieces) for name, pieces in reached.items()},
        }
        for case, reached in summary(experiment, runs)
    ]
    return pd.DataFrame(rows)


def choices_frame(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """What validation chose: a row for each case and a column for each method."""
    rows = []
    for case in experiment.cases:
        row = {name: str(value) for name, value in case.options.items()}
        for method in experiment.methods:
            score = choose(candidates(experiment, case, runs), method)
            row[METHODS[method].title] = NOT_RUN if score is None else _choices(score)
        rows.append(row)
    return pd.DataFrame(rows)


def _choices(score: Score) -> str:
    described = METHODS[score.config.method].described(score.config)
    return "; ".join(filter(None, (score.config.recurrent_init, described, plural(score.seeds, "seed"))))


def exact(found: Sequence[Line]) -> pd.DataFrame:
    """The table for programs: every digit of the records, nothing where there is nothing."""
    rows = [_values(line) for line in found]
    names = [*found[0].case.options, *EXACT]
    return pd.DataFrame(rows, columns=names, dtype=object)  # or 3 would become 3.0 beside a missing one


EXACT = (
    "method",
    "gamma",
    "noise",
    "noise_mode",
    "noise_parameters",
    "rates",
    "output_masks",
    "lower_bound",
    "seed",
    "dtype",
    "best_epoch",
    "epochs",
    "valid_ppl",
    "test_clean",
    "test_bound",
    "test_averaged",
    "test_limit",
    "test_limit_estimated",
    "test_samples",
    "test_marginal",
    "test_marginal_deviation",
    "published",
    "status",
    "chosen",
    "git",
    "record",
)


def _values(line: Line) -> Dict[str, Any]:
    row: Dict[str, Any] = {**line.case.options, "method": METHODS[line.method].title}
    row.update(published=line.case.paper.get(line.method), status=NOT_RUN)
    config = line.config
    if config is not None and config.acts("dropout_inputs"):
        rates = (config.dropout_inputs, config.dropout_states, config.dropout_outputs, config.dropout_embedding)
        row.update(rates=" ".join(map(repr, rates)), output_masks=config.dropout_output_layers)
    if config is not None and config.acts("standard_dropout"):
        row["rates"] = repr(config.standard_dropout)
    if config is not None and config.acts("gamma"):
        row.update(gamma=" ".join(map(repr, config.layer_gammas())), noise=config.noise, noise_mode=config.noise_mode)
        row["noise_parameters"] = " ".join(f"{name}={value!r}" for name, value in config.noise_parameters.items())
    if config is not None and config.acts("lower_bound"):
        row.update(lower_bound=config.lower_bound, gamma=None)  # that of its best epoch, once it has run
    if line.run is not None:
        record = line.run.record
        row.update({name: record.get(name) for name in ("seed", "dtype", "best_epoch", "valid_ppl", "status", "git")})
        test = record["test_ppl"] or {}
        row.update({f"test_{name}": test.get(name) for name in ("clean", "bound", "averaged", "samples")})
        row.update({f"test_{name}": test.get(name) for name in ("marginal", "marginal_deviation")})
        row.update(test_limit=_finite(line.run.test("limit")), test_limit_estimated=line.run.approximate)
        row.update(gamma=" ".join(map(repr, record["gamma"])), epochs=len(line.run.epochs), record=line.run.file)
        row.update(chosen=_choice(line))
    return row


def _finite(value: float) -> Optional[float]:
    return value if math.isfinite(value) else None


def claims_frame(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """The claims as a table of text."""
    return pd.DataFrame(
        [
            {
                "claim": f"({judgement.claim}) {CLAIMS[judgement.claim]}",
                "setting": judgement.setting,
                "by": judgement.measure,
                "verdict": judgement.verdict,
                "ours": plain(judgement.evidence),
                "paper": judgement.paper,
            }
            for judgement in judgements
        ]
    )


def verdicts_frame(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Of each claim that could be judged in how many comparisons it holds, by each measure, here and in the paper."""
    groups: Dict[Tuple[str, str], List[Judgement]] = {}
    for judgement in judgements:
        if judgement.measure != "-":
            groups.setdefault((judgement.claim, judgement.measure.split(", ")[0]), []).append(judgement)
    rows: List[Dict[str, str]] = []
    named = ""
    for (claim, measure), found in groups.items():
        settings = list(dict.fromkeys(one.setting for one in found))
        ours: Dict[str, List[str]] = {}
        for one in found:
            ours.setdefault(one.measure[len(measure) + 2 :], []).append(one.verdict)
        papers = {one.setting: one.paper.split(":")[0] for one in found if one.paper != "-"}
        rows.append(
            {
                "claim": "" if claim == named else f"({claim}) {CLAIMS[claim]}",
                "where": settings[0] if len(settings) == 1 else f"{len(settings)} comparisons",
                "by": measure,
                "here": "; ".join((f"{name}: " if name else "") + _said(verdicts) for name, verdicts in ours.items()),
                "by the paper's numbers": _said(list(papers.values())) or "-",
            }
        )
        named = claim
    return pd.DataFrame(rows)


def _said(verdicts: Sequence[str]) -> str:
    return verdicts[0] if len(verdicts) == 1 else counted(verdicts)


LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    "γ": r"$\gamma$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it, on one line."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


def latex(table: pd.DataFrame, caption: str) -> str:
    """A table for LaTeX's booktabs; columns of numbers to the right."""
    right = [all(re.fullmatch(r"-|\d+(\.\d+)?", cell) for cell in table[name]) for name in table]
    shown = table.apply(lambda column: column.map(lambda cell: latex_text("--" if cell == "-" else cell)))
    text = shown.to_latex(
        index=False,
        header=[latex_text(name) for name in table],
        escape=False,  # pandas leaves <, [, γ and their like
        caption=latex_text(caption),
        column_format="".join("r" if number else "l" for number in right),
    )
    head = "% needs \\usepackage{booktabs}; made by `make report`\n"
    return head + text.replace("\\begin{table}", "\\begin{table}\n\\centering", 1)


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV: nothing in place of a dash, and no text that is a formula to a spreadsheet (as OWASP has it)."""

    def plain_cell(cell: Any) -> Any:
        if not isinstance(cell, str) or cell == "-":
            return None if isinstance(cell, str) else cell
        mark = "'" if re.match("[=+@\x00-\x1f\x7f-]", cell) else ""
        return mark + cell.replace("\r", " ")  # which would end the row: csv does not quote it

    rows = [[plain_cell(cell) for cell in row] for row in table.itertuples(index=False)]
    return pd.DataFrame(rows, columns=table.columns, dtype=object).to_csv(index=False)


def markdown_safe(table: pd.DataFrame) -> pd.DataFrame:
    """The same with what Markdown would take for more than text escaped."""
    return table.apply(lambda column: column.map(lambda cell: escape_markdown(str(cell))))
