"""A comparison of one's own runs, as a table and a figure: `noisin compare`."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence

import pandas as pd

from noisin import figures
from noisin.config import Config, flag, recorded_config
from noisin.methods import METHODS
from noisin.runs.listing import read_run, summary
from noisin.system.errors import escape_unprintable
from noisin.tables import escape_markdown, markdown

_RESULTS = ("valid", "test clean", "test averaged", "test limit", "test marginal", "gamma", "time")
# What `noisin runs` leaves out: the estimator's name, and its field in a record.
_OTHERS = {"limit": "averaged_limit", "marginal": "marginal"}


def compare(paths: Sequence[Path], picture: Path) -> str:
    """Draw the curves of the runs in these directories; returns their table and where the figure is, as text.

    Raises
    ------
    UserError
        If one of them holds no run.
    """
    runs = {escape_unprintable(str(path)): read_run(path) for path in paths}
    parts = [markdown(_table(runs))]
    corpora = by_corpus(runs)
    if len(corpora) > 1:
        said = "; ".join(f"{', '.join(alike)} ({_corpus(next(iter(alike.values())))})" for alike in corpora)
        parts.append(f"Not comparable, because their corpora or vocabularies differ: {said}")
    if any(record["epochs"] for record in runs.values()):
        figures.save(draw(runs), picture)
        parts.append(f"Figure: {escape_unprintable(str(picture))}")
    else:
        parts.append("No figure: none of these runs has finished an epoch yet.")
    return "\n\n".join(parts)


def by_corpus(runs: Mapping[str, Mapping[str, Any]]) -> List[Dict[str, Mapping[str, Any]]]:
    """The runs in groups of those whose perplexities can be compared: of one text and one vocabulary."""
    groups: Dict[Any, Dict[str, Mapping[str, Any]]] = {}
    for name, record in runs.items():
        config = recorded_config(record["config"])
        vocabulary = config.max_vocabulary if config.acts("max_vocabulary") else "the published one"
        groups.setdefault((record["corpus_sha256"], vocabulary), {})[name] = record
    return list(groups.values())


def draw(runs: Mapping[str, Mapping[str, Any]]) -> figures.Figure:
    """Draw the curves of these runs, each labelled by its method and what else distinguishes it."""
    floors = {record["floor_ppl"] for record in runs.values()} - {None}
    floor: Optional[float] = floors.pop() if len(floors) == 1 == len(by_corpus(runs)) else None
    return figures.comparison({label: runs[name] for label, name in labels(runs).items()}, floor)


def labels(runs: Mapping[str, Mapping[str, Any]]) -> Dict[str, str]:
    """The runs' names by what distinguishes them: the method and the options that differ, if need be the name too."""
    configs = {name: recorded_config(record["config"]) for name, record in runs.items()}
    names = [name for name in _differing(configs.values()) if not name.startswith("eval_")]  # which change no curve
    found: Dict[str, List[str]] = {}
    for run, config in configs.items():
        options = [f"{name.replace('_', ' ')} {_value(config, name)}" for name in names if config.acts(name)]
        found.setdefault(", ".join([METHODS[config.method].title, *options]), []).append(run)
    return {f"{label} ({run})" if len(same) > 1 else label: run for label, same in found.items() for run in same}


def _table(runs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each run: its method, the options that differ, and its results."""
    options = _differing([recorded_config(record["config"]) for record in runs.values()])
    rows = []
    for name, record in runs.items():
        config, test = recorded_config(record["config"]), record["test_ppl"] or {}
        row = {"run": name, "corpus": _corpus(record), **summary(record), "method": METHODS[config.method].title}
        row.update({flag(name): _value(config, name) for name in options})
        row.update({f"test {name}": f"{test[key]:.2f}" for name, key in _OTHERS.items() if test.get(key)})
        row["time"] = str(timedelta(seconds=round(sum(entry["seconds"] for entry in record["epochs"]))))
        rows.append({column: escape_markdown(value) for column, value in row.items()})
    table = pd.DataFrame(rows, dtype=object)
    corpus = ["corpus"] if len(by_corpus(runs)) > 1 else []
    wanted = ["run", *corpus, "method", *map(flag, options), "status", "epoch", "best epoch", *_RESULTS]
    return table[[name for name in wanted if name in table]].fillna("-")


def _differing(configs: Collection[Config]) -> List[str]:
    """The options, other than method and corpus, that differ between runs in which they have an effect."""
    found = []
    for name in (entry.name for entry in dataclasses.fields(Config)):
        values = [getattr(config, name) for config in configs if config.acts(name)]
        if name not in ("method", "corpus") and any(value != values[0] for value in values):
            found.append(name)
    return found


def _value(config: Config, name: str) -> str:
    """An option's value as text; a dash where it has no effect."""
    value = getattr(config, name) if config.acts(name) else []
    parts = [f"{key}={number:g}" for key, number in value.items()] if isinstance(value, dict) else value
    parts = parts if isinstance(parts, list) else [parts]
    return ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts) or "-"


def _corpus(record: Mapping[str, Any]) -> str:
    return escape_unprintable(record["config"]["corpus"])
