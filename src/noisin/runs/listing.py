"""A table of the runs below a folder: `noisin runs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Dict, Mapping

import pandas as pd

from noisin.runs.directory import RunDirectory
from noisin.runs.formats import Progress, best_of
from noisin.system.errors import UserError, escape_unprintable

DAMAGED = "damaged"  # status of a run that cannot be read


def runs_table(folder: Path) -> pd.DataFrame:
    """One row for each run directory below `folder`, at any depth, by path.

    Raises
    ------
    UserError
        If there is no such folder, or no run in it.
    """
    try:
        os.listdir(folder)
    except OSError as error:
        advice = "name a folder of runs; noisin train makes the folder runs"
        raise UserError(f"cannot list {folder}: {error.strerror}; {advice}") from None
    rows = [_row(path.parent, folder) for path in sorted(folder.rglob("config.json"))]
    if not rows:
        raise UserError(f"{folder} holds no run: noisin train makes one")
    return pd.DataFrame(rows, dtype=object).fillna("-")


def read_run(path: Path) -> Dict[str, Any]:
    """The record of the run in a directory; of a run without one yet, the fields that are known so far.

    Its `status` then is 'running', 'interrupted', 'not tested' or 'not one epoch yet', and it has no `test_ppl`.

    Raises
    ------
    UserError
        If the directory holds no run, or a file of it is damaged.
    """
    directory = RunDirectory(path)
    config, progress = directory.read_config(), directory.load() or Progress()
    record = directory.read_record()
    if record is not None:
        return {**record, "config": config.to_dict()}
    best = best_of(progress.epochs)
    known = {name: getattr(config, name) for name in ("method", "seed", "dtype")}
    return {
        **known,
        "config": config.to_dict(),
        "status": _status(directory, progress),
        "epochs": progress.epochs,
        "best_epoch": progress.best_epoch,
        "valid_ppl": progress.valid_ppl,
        "gamma": best["gamma"] if best else [],
        "test_ppl": None,
        "corpus_sha256": directory.corpus_sha256,
        "floor_ppl": None,
    }


def summary(record: Mapping[str, Any]) -> Dict[str, str]:
    """The columns of a run's row, as text."""
    row = {"status": record["status"], "method": record["method"]}
    if record["best_epoch"]:
        row["epoch"] = f"{len(record['epochs'])} of {record['config']['epochs']}"
        row["best epoch"] = str(record["best_epoch"])
        row["valid"] = f"{record['valid_ppl']:.2f}"
        row["gamma"] = " ".join(f"{gamma:.3f}" for gamma in record["gamma"]) or "-"
    test = record["test_ppl"] or {}
    row.update({f"test {name}": f"{test[name]:.2f}" for name in ("clean", "averaged") if test.get(name)})
    return row


def _row(path: Path, folder: Path) -> Dict[str, str]:
    name = escape_unprintable(str(path.relative_to(folder)))
    try:
        return {"run": name, **summary(read_run(path))}
    except (UserError, OSError, KeyError, TypeError, ValueError) as reason:  # one bad run must not hide the others
        print(f"noisin: error: {name}: {escape_unprintable(str(reason))}", file=sys.stderr)
        return {"run": name, "status": DAMAGED}


def _status(directory: RunDirectory, progress: Progress) -> str:
    if directory.in_use:
        return "running"
    if progress.status != "running":
        return "not tested"
    return "interrupted" if progress.epochs else "not one epoch yet"
