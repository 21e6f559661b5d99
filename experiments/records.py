"""Records of finished runs: finding, filing and tabulating them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

import pandas as pd

from experiments.declared import Experiment
from noisin.checkpoint import read_json, write_json
from noisin.config import Config, config_from_dict
from noisin.errors import UserError

RESULTS = Path(__file__).resolve().parent / "results"


def load_records(folder: Path) -> List[Dict[str, Any]]:
    """Every record in `folder`, by name; none if the folder is not there."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def find_record(records: Iterable[Dict[str, Any]], config: Config) -> Optional[Dict[str, Any]]:
    """The record of the run of this configuration, or None."""
    for record in records:
        try:
            # Not the file's name: an option that is new since then has its default in the record's configuration.
            if config_from_dict(record["config"], "a record") == config:
                return record
        except (KeyError, UserError):
            continue  # written by another version: another run
    return None


def file_record(folder: Path, config: Config, record: Dict[str, Any]) -> None:
    """Put the record of a finished run into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{config.name}.json", record)


def table(experiment: Experiment, records: Sequence[Dict[str, Any]]) -> pd.DataFrame:
    """One row a run, in the order of the methods: ours beside the paper's."""
    order = list(experiment.methods)
    rows = [
        {
            "method": record["method"],
            "gamma": " ".join(f"{gamma:.3f}" for gamma in record["gamma"]) or "-",
            "seed": record["seed"],
            "dtype": record["dtype"],
            "best epoch": f"{record['best_epoch']} of {len(record['epochs'])}",
            "valid": _number(record["valid_ppl"]),
            "test clean": _number((record["test_ppl"] or {}).get("clean")),
            "test averaged": _number((record["test_ppl"] or {}).get("averaged")),
            "paper": _number(experiment.paper.get(record["method"])),
            "status": record["status"],
        }
        for record in sorted(records, key=lambda r: (order.index(r["method"]), r["config"]["gamma"], r["seed"]))
    ]
    return pd.DataFrame(rows)


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.1f}"


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, columns aligned for reading as text too."""
    lines = [list(map(str, frame.columns)), *(list(map(str, row)) for row in frame.itertuples(index=False))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])
