"""A table of the runs below a folder: `noisin runs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Dict

import pandas as pd

from noisin.runs.directory import RunDirectory
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
        raise UserError(f"{folder}: {error.strerror}; give a folder that holds run directories") from None
    rows = [_row(path.parent, folder) for path in sorted(folder.rglob("config.json"))]
    if not rows:
        raise UserError(f"{folder} holds no run: noisin train makes one")
    return pd.DataFrame(rows).fillna("-")


def _row(path: Path, folder: Path) -> Dict[str, Any]:
    directory, name = RunDirectory(path), escape_unprintable(str(path.relative_to(folder)))
    try:
        config, progress = directory.read_config(), directory.load()
        record = directory.read_record()
        status = _status(directory, progress) if record is None else record["status"]
        row: Dict[str, Any] = {"run": name, "status": status, "method": config.method}
        if progress and progress.best_epoch:
            row["epoch"] = f"{len(progress.epochs)} of {config.epochs}"
            row["best epoch"] = str(progress.best_epoch)
            row["valid"] = f"{progress.valid_ppl:.2f}"
            best = progress.epochs[progress.best_epoch - 1]
            row["gamma"] = " ".join(f"{gamma:.3f}" for gamma in best["gamma"]) or "-"
        if record is not None:
            test = record["test_ppl"] or {}
            row.update({f"test {name}": f"{test[name]:.2f}" for name in ("clean", "averaged") if test.get(name)})
        return row
    except (UserError, OSError, KeyError, TypeError, ValueError) as reason:  # one bad run must not hide the others
        print(f"noisin: error: {name}: {escape_unprintable(str(reason))}", file=sys.stderr)
        return {"run": name, "status": DAMAGED}


def _status(directory: RunDirectory, progress: Any) -> str:
    if directory.in_use:
        return "running"
    if progress and progress.status != "running":
        return "not tested"
    return "interrupted" if progress and progress.epochs else "not one epoch yet"
