"""The README's sections of results and of speed, made from what is committed: `make results`."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from benchmarks import report
from experiments.declared import EXPERIMENTS
from experiments.records import RESULTS, draw, draw_against_paper
from experiments.runs import load_runs, runs_of
from experiments.tables import frame, lines, markdown, markdown_safe
from noisin.errors import UserError
from noisin.files import write_file

README = Path(__file__).resolve().parents[1] / "README.md"


def results_section() -> str:
    """A table for every experiment that has records, with its figure."""
    parts, runs = [], load_runs()
    for experiment in EXPERIMENTS.values():
        own = runs_of(experiment, runs)
        if own:
            folder = f"experiments/results/{experiment.name}"
            parts += [f"**{experiment.title}**", markdown(markdown_safe(frame(experiment, lines(experiment, own))))]
            parts.append(f"![{experiment.title}: curves]({folder}/curves.png)")
            if experiment.published:
                parts.append(
                    f"![{experiment.title}: test perplexity, ours and the paper's]({folder}/against-paper.png)"
                )
    return "\n\n".join(parts)


def speed_section() -> str:
    """Tables of the committed measurements, with their figures."""
    results = report.read_results(report.HERE / "results.json")
    hardware, versions = results["hardware"], results["versions"]
    where = f"{hardware.get('cpu')}, {hardware.get('threads')} threads; "
    where += f"MXNet {versions.get('mxnet')}, PyTorch {versions.get('torch')}."
    parts = [where, *report.sections(results, markdown)]
    if results["startup_seconds"] is not None:  # not measured where the corpus is not
        seconds = f"{results['startup_seconds']:.1f} s"
        parts.append(f"From the start of the process to the first training step, corpus cached: {seconds}.")
    parts.append(f"![Words a second](benchmarks/{report.SPEED_PICTURE})")
    if results["growth"]:
        parts.append(f"![Cost against size](benchmarks/{report.GROWTH_PICTURE})")
    return "\n\n".join(parts)


SECTIONS = {"results": results_section, "speed": speed_section}


def marks(name: str) -> Tuple[str, str]:
    """The comments between which a section stands."""
    return f"<!-- {name}: made by `make results`, not by hand -->", f"<!-- end of {name} -->"


def split_readme(text: str, name: str) -> Tuple[str, str, str]:
    """The README before, in and after a section."""
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{README} has no section between '{begin}' and '{end}'")
    before, rest = text.split(begin)
    section, after = rest.split(end)
    return before + begin, section.strip("\n"), end + after


def update_readme() -> None:
    """Draw the figures anew and rewrite the sections."""
    runs = load_runs()
    for experiment in EXPERIMENTS.values():
        records = [run.record for run in runs_of(experiment, runs)]
        if records:
            draw(experiment, records, RESULTS / experiment.name / "curves.png")
        if records and experiment.published:
            draw_against_paper(experiment, records, RESULTS / experiment.name / "against-paper.png")
    report.draw(report.read_results(report.HERE / "results.json"), report.HERE)
    text = README.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        before, _, after = split_readme(text, name)
        text = f"{before}\n\n{section()}\n\n{after}"
    write_file(README, lambda temporary: temporary.write_text(text, encoding="utf-8"))
