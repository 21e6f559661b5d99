"""What the README and the pages of docs/ show of results and of speed, made from what is committed: `make results`."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import pandas as pd

from benchmarks import report
from experiments.catalogue import EXPERIMENTS, TABLE2, TABLE3, Experiment
from experiments.records import RESULTS, draw
from experiments.report.build import draw_tests
from experiments.report.claims import FAILS, HOLDS, RIVALS, UNDECIDED, judge, lower, seed_deviations, title_of
from experiments.report.runs import Run, candidates, choose, load_runs, network_of, number, runs_of
from experiments.report.tables import (
    NOT_RUN,
    choices_frame,
    frame,
    lines,
    markdown_safe,
    summary_frame,
    verdicts_frame,
)
from noisin.figures import save
from noisin.methods import METHODS
from noisin.system.errors import UserError
from noisin.system.files import write_file
from noisin.tables import markdown

ROOT = Path(__file__).resolve().parents[2]


def glance_section() -> str:
    """One row for each setting of the paper's two tables, one column a method: averaged (limit), and the paper's.

    Bold is a method to which no other is better by more than luck may be.
    """
    rows, runs = [], load_runs()
    deviations = seed_deviations(runs)["limit"]
    for experiment in (TABLE2, TABLE3):
        for case in experiment.cases:
            network = next(network_of(config) for config in experiment.configs() if case.covers(config))
            row = {"setting": f"{experiment.short_title}: {network}"}
            found = {name: choose(candidates(experiment, case, runs), name) for name in experiment.methods}
            ran = [score for score in found.values() if score is not None]
            for name, score in found.items():
                shown = NOT_RUN if score is None else score.mean("limit")
                if score and not any(lower(other, score, "limit", deviations) == HOLDS for other in ran):
                    shown = f"**{shown}**"
                published = case.paper.get(name)
                row[METHODS[name].title] = shown + ("" if published is None else f" ({number(published)})")
            rows.append(row)
    return markdown(pd.DataFrame(rows))


def results_section() -> str:
    """Every experiment that has records, those with published numbers first, the others folded; and the claims."""
    runs = load_runs()
    found = begun(runs)
    parts = [_beside_paper(experiment, runs) for experiment in found if is_beside_paper(experiment)]
    parts += [_by_itself(experiment, runs) for experiment in found if not is_beside_paper(experiment)]
    verdicts = verdicts_frame(judge(runs, report.read_results(report.HERE / "results.json")))
    parts += [
        "**The paper's claims: in how many comparisons each holds**",
        "A comparison is one setting; for (d) one of NOISIN and NOISIN\\* in Figure 2's setting, for (e) one of three\n"
        "methods with one of two networks and number types. *undecided*: within two standard errors; for (c), the\n"
        "deviations are less than four times apart, or one case decides; for (d), the seeds of the methods overlap;\n"
        "for (e), the rounds disagree.",
        markdown(markdown_safe(verdicts)),
        "**Standard deviation over seeds, in per cent of the perplexity**",
        _deviations(runs),
    ]
    return "\n\n".join(parts)


def begun(runs: Sequence[Run]) -> List[Experiment]:
    """The experiments with a record of their own, not only one that they share with another experiment."""
    names = {run.file.split("/")[0] for run in runs}
    return [experiment for experiment in EXPERIMENTS.values() if experiment.name in names]


def is_beside_paper(experiment: Experiment) -> bool:
    """Whether the pages show an experiment beside published numbers: not a search, whose choices another one shows."""
    searches = [search for other in EXPERIMENTS.values() for search in other.searches]
    return experiment.published and experiment not in searches


def _deviations(runs: Sequence[Run]) -> str:
    """How far the perplexities of each method's seeds spread, which decides what is a tie."""
    found = pd.DataFrame(seed_deviations(runs)).loc[list(TABLE2.methods)]
    shown = found.apply(lambda column: column.map("{:.1%}".format))
    return markdown(shown.rename(index=lambda method: METHODS[method].title).rename_axis("method").reset_index())


def wins_section() -> str:
    """In how many settings of Table 2 the better of NOISIN and NOISIN* wins, loses or ties, by each estimator.

    Below it stands in how many runs averaging helps.
    """
    runs = load_runs()
    judged = [one for one in judge(runs) if one.setting in {title_of(TABLE2, case) for case in TABLE2.cases}]
    rows = []
    for claim, rival in RIVALS.items():
        for estimator, title in (("clean", "noise off"), ("limit", "averaged (limit)")):
            found = [one.verdict for one in judged if (one.claim, one.measure) == (claim, f"test, {estimator}")]
            counts = {"wins": HOLDS, "loses": FAILS, "ties": UNDECIDED}
            row = {"Table 2": f"The better NOISIN against {METHODS[rival].title}, {title}"}
            rows.append({**row, **{name: found.count(verdict) for name, verdict in counts.items()}})
    random = [run for run in runs if run.stochastic]
    better = sum(run.test("limit") < run.test("clean") for run in random)
    helped = (
        f"Averaging in the limit is better than switching the noise off in {better} of {len(random)} runs with noise."
    )
    return f"{markdown(pd.DataFrame(rows))}\n\n{helped}"


def _beside_paper(experiment: Experiment, runs: Sequence[Run]) -> str:
    """Our numbers and the published ones; where there are several cases the table of every run is folded."""
    table = _every_run(experiment, runs)
    if experiment.summarised:
        parts = [markdown(markdown_safe(summary_frame(experiment, runs)))]
        if experiment.searches:
            parts += ["What validation chose:", markdown(markdown_safe(choices_frame(experiment, runs)))]
        table = "\n\n".join([*parts, _folded(f"{experiment.short_title}: every run", table)])
    return "\n\n".join([f"**{experiment.title}**", table, _pictures(experiment)])


def _by_itself(experiment: Experiment, runs: Sequence[Run]) -> str:
    return _folded(experiment.title, f"{_every_run(experiment, runs)}\n\n{_pictures(experiment)}")


def _every_run(experiment: Experiment, runs: Sequence[Run]) -> str:
    return markdown(markdown_safe(frame(experiment, lines(experiment, runs_of(experiment, runs), runs))))


def _pictures(experiment: Experiment) -> str:
    folder = f"../experiments/results/{experiment.name}"
    shown = {"test.png": "test perplexity", "curves.png": "curves"}
    return "\n\n".join(f"![{experiment.title}: {what}]({folder}/{file})" for file, what in shown.items())


def _folded(title: str, content: str) -> str:
    """What a click opens, with the blank lines that Markdown inside of HTML needs."""
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def speed_section() -> str:
    """Tables of the committed measurements, with their figures."""
    results = report.read_results(report.HERE / "results.json")
    hardware, versions = results["hardware"], results["versions"]
    where = f"{hardware.get('cpu')}, {hardware.get('threads')} threads; "
    libraries = (("MXNet", "mxnet"), ("PyTorch", "torch"), ("JAX", "jax"))
    where += ", ".join(f"{title} {versions[name]}" for title, name in libraries if versions.get(name)) + "."
    parts = [where, *report.sections(results)]
    if results["startup_seconds"] is not None:  # not measured where the corpus is not
        seconds = f"{results['startup_seconds']:.1f} s"
        parts.append(f"From the start of the process to the first training step: {seconds}.")
    parts.append(f"![Words a second](../benchmarks/{report.SPEED_PICTURE})")
    if results["growth"]:
        parts.append(f"![Cost against size](../benchmarks/{report.GROWTH_PICTURE})")
    return "\n\n".join(parts)


# By name: the file that it stands in, and what makes it.
SECTIONS: Dict[str, Tuple[Path, Callable[[], str]]] = {
    "glance": (ROOT / "README.md", glance_section),
    "wins": (ROOT / "docs/results.md", wins_section),
    "results": (ROOT / "docs/results.md", results_section),
    "speed": (ROOT / "docs/benchmarks.md", speed_section),
}


def marks(name: str) -> Tuple[str, str]:
    """The comments between which a section stands."""
    return f"<!-- {name}: made by `make results`, not by hand -->", f"<!-- end of {name} -->"


def split_page(name: str) -> Tuple[str, str, str]:
    """The page of a section before, in and after it."""
    path, (begin, end) = SECTIONS[name][0], marks(name)
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{path} has no section between '{begin}' and '{end}'")
    before, rest = text.split(begin)
    section, after = rest.split(end)
    return before + begin, section.strip("\n"), end + after


def update_pages() -> None:
    """Draw the figures anew and rewrite the sections."""
    runs = load_runs()
    for experiment in begun(runs):
        records, folder = [run.record for run in runs_of(experiment, runs)], RESULTS / experiment.name
        save(draw(experiment, records), folder / "curves.png")
        save(draw_tests(experiment, runs), folder / "test.png")
    report.draw(report.read_results(report.HERE / "results.json"), report.HERE)
    for name, (path, section) in SECTIONS.items():
        before, _, after = split_page(name)
        write_file(path, f"{before}\n\n{section()}\n\n{after}")
