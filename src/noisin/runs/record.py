"""The record of a run (docs/formats.md): sealed when the run ends, checked wherever it is written or read."""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import gluonnlp
import mxnet as mx
import numpy as np

import noisin
from noisin.config import Config, recorded_config
from noisin.data.corpus import Corpus
from noisin.data.published import NAMES
from noisin.model import LanguageModel
from noisin.runs.formats import LARGEST, Progress, Wrong, best_of, check_progress, check_sealed, seal
from noisin.system.device import device_name
from noisin.system.errors import UserError, plural, short_repr
from noisin.system.files import read_json, write_json
from noisin.system.provenance import cpu_name, git_revision, now
from noisin.system.threads import threads


def origin(device: mx.Context) -> Dict[str, Any]:
    """What trains a run now: the commit, the versions and the machine."""
    return {
        "git": git_revision(),
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (mx, gluonnlp, np)},
            "noisin": noisin.__version__,
        },
        "hardware": {"cpu": cpu_name(), "threads": threads(), "device": device_name(device)},
    }


def make_record(
    config: Config,
    progress: Progress,
    model: LanguageModel,
    test_ppl: Optional[Dict[str, Any]],
    corpus: Corpus,
) -> Dict[str, Any]:
    """The sealed record of a run (docs/formats.md); a diverged one has null where there is no number."""
    best = progress.epochs[progress.best_epoch - 1] if progress.best_epoch else None
    parameters = model.collect_params().values()
    content = {
        "corpus": corpus.name,
        **_copies(config),
        "gamma": best["gamma"] if best else [],
        "parameters": sum(p.data().size for p in parameters if p.grad_req != "null"),
        "epochs": progress.epochs,
        "best_epoch": progress.best_epoch,
        "valid_ppl": progress.valid_ppl,
        "test_ppl": test_ppl,
        "status": progress.status,
        "reason": progress.reason,
        "config": config.to_dict(),
        "corpus_sha256": corpus.digest,
        "floor_ppl": corpus.floor,
        **_every(progress.origins),
        "started": progress.started,
        "finished": now(),
    }
    return seal(content)


def _every(values: Sequence[Any]) -> Any:
    """Several values in one: of objects field by field, of texts one behind the other, of numbers as a list."""
    if isinstance(values[0], dict):
        return {name: _every([value.get(name) for value in values]) for name in values[0]}
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    return ", ".join(distinct) if isinstance(distinct[0], str) else distinct


_ADVICE = "restore it, or delete it and repeat the command that trained the run, which writes it anew"


def read_record(path: Path) -> Dict[str, Any]:
    """Read a record and check it.

    Raises
    ------
    UserError
        If it cannot be read, is not a record, or was changed since it was written; one line that names the file.
    """
    try:
        record = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {_ADVICE}") from None
    check_record(record, str(path))
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a sealed record.

    Raises
    ------
    UserError
        If it is not one, or the file cannot be written.
    """
    check_record(record, str(path))
    write_json(path, record)


def check_record(record: Mapping[str, Any], source: str) -> Config:
    """Refuse what a run of noisin cannot have written.

    Parameters
    ----------
    record : mapping
        As JSON gives it.
    source : str
        Where it comes from, for the message.

    Returns
    -------
    Config
        The run's; options that are new since then have their defaults.

    Raises
    ------
    UserError
        If the record was changed after it was sealed, or a field is missing, of another type, out of range, or
        contradicts another one.
    """
    try:
        check_sealed(record, "record")
        config = recorded_config(record["config"], "its configuration")
        _check_agreement(record, config)
    except (Wrong, UserError) as wrong:
        raise UserError(f"{source} is not the record of a run: {wrong}; {_ADVICE}") from None
    return config


def finite_or_null(perplexities: Mapping[str, float]) -> Dict[str, Optional[float]]:
    """Perplexities as JSON can hold them: null for one that is too large or not a number."""
    return {name: value if value <= LARGEST else None for name, value in perplexities.items()}


def _copies(config: Config) -> Dict[str, Any]:
    """What a record repeats of its configuration, for those who read records without it."""
    names = ("cell", "activation", "layers", "hidden", "method", "seed", "dtype")
    return {**{name: getattr(config, name) for name in names}, "noise": config.noise if config.acts("noise") else None}


def _check_agreement(record: Mapping[str, Any], config: Config) -> None:
    """Check that what a record says twice, it says alike, and that what follows from its epochs does follow."""
    for name, expected in _copies(config).items():
        if repr(record.get(name, "missing")) != repr(expected):  # 1, 1.0 and true are equal, but not the same
            raise Wrong(f"{name} is {short_repr(record.get(name, 'missing'))}, but {expected!r} in its configuration")
    # Another text must not pass for one of these.
    if {record["corpus"], config.corpus} & set(NAMES) and record["corpus"] != config.corpus:
        raise Wrong(f"corpus is {short_repr(record['corpus'])}, but {short_repr(config.corpus)} in its configuration")
    check_progress(record, config)
    best = best_of(record["epochs"])
    if record["gamma"] != (best["gamma"] if best else []):
        raise Wrong(f"gamma is {short_repr(record['gamma'])}, but not that of its best epoch")
    if record["status"] == "finished" and len(record["epochs"]) != config.epochs:
        raise Wrong(f"status is finished after {plural(len(record['epochs']), 'epoch')} of {config.epochs}")
    if best is None:
        if record["status"] != "diverged" or record["test_ppl"] is not None:
            raise Wrong("it has a test perplexity, or has not diverged, without any epoch")
    else:
        _check_test(record["test_ppl"])


def _check_test(test: Optional[Mapping[str, Any]]) -> None:
    if test is None:
        raise Wrong("test_ppl is None, not an object")
    if ("averaged_limit" in test) != ("averaged_limit_error" in test):
        raise Wrong("test_ppl has only one of 'averaged_limit' and 'averaged_limit_error'")
    limit, averaged, bound = (test.get(name) or math.inf for name in ("averaged_limit", "averaged", "bound"))
    if averaged > bound * (1 + 1e-6):  # Jensen's inequality, up to rounding
        raise Wrong("its averaged test perplexity is above its bound")
    if math.isfinite(limit) and limit > averaged * (1 + 1e-6):
        raise Wrong("the limit of its averaged test perplexity is above it")
