"""The results section of the README, made from the committed records: `make results`."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from experiments.declared import EXPERIMENTS
from experiments.records import RESULTS, load_records, markdown, table
from noisin.checkpoint import write_file
from noisin.errors import UserError
from noisin.figures import figure2

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: made by `make results`, not by hand -->", "<!-- end of results -->"


def results_section() -> str:
    """A table for every experiment that has records, with its figure."""
    parts = []
    for experiment in EXPERIMENTS.values():
        records = load_records(RESULTS / experiment.name)
        if records:
            picture = f"experiments/results/{experiment.name}/figure2.png"
            parts.append(
                f"**{experiment.title}**\n\n{markdown(table(experiment, records))}\n\n![{experiment.title}]({picture})"
            )
    return "\n\n".join(parts)


def split_readme(text: str) -> Tuple[str, str, str]:
    """The README before, in and after the results section."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{README} has no results section between '{BEGIN}' and '{END}'")
    before, rest = text.split(BEGIN)
    section, after = rest.split(END)
    return before + BEGIN, section.strip("\n"), END + after


def update_readme() -> None:
    """Draw the figures anew and rewrite the results section."""
    for experiment in EXPERIMENTS.values():
        records = load_records(RESULTS / experiment.name)
        if records:
            figure2(records, RESULTS / experiment.name / "figure2.png", experiment.title)
    before, _, after = split_readme(README.read_text(encoding="utf-8"))
    text = f"{before}\n\n{results_section()}\n\n{after}"
    write_file(README, lambda temporary: temporary.write_text(text, encoding="utf-8"))
