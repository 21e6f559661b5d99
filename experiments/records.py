"""Records of finished runs: finding, filing and tabulating them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

import pandas as pd

from experiments.declared import Experiment
from noisin.config import Config, config_from_dict
from noisin.errors import UserError
from noisin.figures import figure2, validation_panels
from noisin.record import check_record, read_record, write_record

RESULTS = Path(__file__).resolve().parent / "results"


def load_records(*folders: Path) -> List[Dict[str, Any]]:
    """Every record in these folders, by name; none from a folder that is not there.

    Raises
    ------
    UserError
        If one is damaged or was changed, naming it.
    """
    return [read_record(path) for folder in folders for path in sorted(folder.glob("*.json"))]


def find_record(records: Iterable[Dict[str, Any]], config: Config) -> Optional[Dict[str, Any]]:
    """The record of the run of this configuration, or None."""
    for record in records:
        # Not the file's name: an option that is new since then has its default in the record's configuration.
        if config_from_dict(record["config"]) == config:
            return record
    return None


def file_record(folder: Path, config: Config, record: Dict[str, Any]) -> None:
    """Put the record of a finished run into `folder`.

    Raises
    ------
    UserError
        If it is not the record of this configuration, or cannot be written.
    """
    path = folder / f"{config.name}.json"
    if check_record(record, str(path)) != config:
        raise UserError(f"{path} cannot be written: what this run left is the record of another one")
    write_record(path, record)


def records_of(experiment: Experiment, folder: Path = RESULTS) -> List[Dict[str, Any]]:
    """The committed records of an experiment's runs, whatever the seed and dtype.

    Experiments share runs (Figure 2 is one case of Table 2), so every experiment's records are looked at.
    """
    records = load_records(*sorted(folder.glob("*")))
    belongs = belonging(experiment, [config_from_dict(record["config"]) for record in records])
    return [record for record, own in zip(records, belongs) if own]


def belonging(experiment: Experiment, configs: Sequence[Config]) -> List[bool]:
    """Of each configuration, whether it is one of the experiment's, whatever its seed and dtype."""
    declared = experiment.configs(seeds=[1], dtype="float32")
    return [replace(config, seed=1, dtype="float32") in declared for config in configs]


def table(experiment: Experiment, records: Sequence[Dict[str, Any]]) -> pd.DataFrame:
    """One row a run, ours beside the paper's, by case and method; a method of a case that has no run is said to."""
    rows = []
    for case in experiment.cases:
        of_case = [record for record in records if case.covers(record["config"])]
        for method in experiment.methods:
            found = [record for record in of_case if record["method"] == method]
            shared = {**case.options, "method": method}
            paper = _number(case.paper.get(method))
            for record in sorted(found, key=lambda record: (record["config"]["gamma"], record["seed"])):
                rows.append({**shared, **_row(record, paper)})
            if not found and len(experiment.cases) > 1:
                rows.append({**dict.fromkeys(COLUMNS, "-"), **shared, "paper": paper, "status": "not run yet"})
    return pd.DataFrame(rows, columns=[*experiment.cases[0].options, "method", *COLUMNS])


def draw(experiment: Experiment, records: Sequence[Dict[str, Any]], path: Path, floor: Optional[float] = None) -> None:
    """The curves of an experiment's runs: as Figure 2 where there is one case, else a panel a case."""
    if len(experiment.cases) == 1:
        figure2(records, path, experiment.title, floor)
        return
    panels = {case.title: [record for record in records if case.covers(record["config"])] for case in experiment.cases}
    validation_panels(panels, path, experiment.title)


COLUMNS = ("gamma", "seed", "dtype", "best epoch", "valid", "test clean", "test averaged", "paper", "status")


def _row(record: Dict[str, Any], paper: str) -> Dict[str, Any]:
    return {
        "gamma": " ".join(f"{gamma:.3f}" for gamma in record["gamma"]) or "-",
        "seed": str(record["seed"]),
        "dtype": record["dtype"],
        "best epoch": f"{record['best_epoch']} of {len(record['epochs'])}",
        "valid": _number(record["valid_ppl"]),
        "test clean": _number((record["test_ppl"] or {}).get("clean")),
        "test averaged": _number((record["test_ppl"] or {}).get("averaged")),
        "paper": paper,
        "status": record["status"],
    }


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.1f}"


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, columns aligned for reading as text too."""
    lines = [list(map(str, frame.columns)), *(list(map(str, row)) for row in frame.itertuples(index=False))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])
