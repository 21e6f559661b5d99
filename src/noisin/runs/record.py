"""The record of a run (DESIGN, section 7): sealed when the run ends, checked wherever it is written or read.

The seal is `digest`, the sha256 of everything else in the record, so that a number that was changed later is found out.
It guards against slips and touched-up results, not against somebody who computes the digest anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

import gluonnlp
import mxnet as mx
import numpy as np

import noisin
from noisin.config import Config, recorded_config
from noisin.data.corpus import Corpus
from noisin.data.published import NAMES
from noisin.model import LanguageModel
from noisin.runs.directory import Progress
from noisin.system.device import device_name
from noisin.system.errors import UserError
from noisin.system.files import read_json, write_json
from noisin.system.provenance import cpu_name, now
from noisin.system.threads import threads


def make_record(
    config: Config,
    progress: Progress,
    model: LanguageModel,
    test_ppl: Optional[Dict[str, Any]],
    corpus: Corpus,
    device: mx.Context,
) -> Dict[str, Any]:
    """The sealed record of a run (DESIGN, section 7); a diverged one has null where there is no number."""
    best = progress.epochs[progress.best_epoch - 1] if progress.best_epoch else None
    parameters = model.collect_params().values()
    content = {
        "corpus": corpus.name,
        "cell": config.cell,
        "activation": config.activation,
        "layers": config.layers,
        "hidden": config.hidden,
        "method": config.method,
        "noise": config.noise if model.noises else None,
        "gamma": best["gamma"] if best else [],
        "seed": config.seed,
        "dtype": config.dtype,
        "parameters": sum(p.data().size for p in parameters if p.grad_req != "null"),
        "epochs": progress.epochs,
        "best_epoch": progress.best_epoch,
        "valid_ppl": progress.best_valid_ppl,
        "test_ppl": test_ppl,
        "status": progress.status,
        "reason": progress.reason,
        "config": config.to_dict(),
        "corpus_sha256": corpus.digest,
        "floor_ppl": corpus.floor,
        "git": ", ".join(progress.revisions) or None,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (mx, gluonnlp, np)},
            "noisin": noisin.__version__,
        },
        "hardware": {"cpu": cpu_name(), "threads": threads(), "device": device_name(device)},
        "started": progress.started,
        "finished": now(),
    }
    return seal(content)


def seal(record: Mapping[str, Any]) -> Dict[str, Any]:
    """The record with the digest of all the rest of it, instead of one that it may have."""
    content = {name: value for name, value in record.items() if name != "digest"}
    # Canonical: keys in order, no spaces, ASCII, and floats as `repr` has them, which is exact.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**content, "digest": hashlib.sha256(text.encode()).hexdigest()}


def read_record(path: Path) -> Dict[str, Any]:
    """Read a record and check it.

    Raises
    ------
    UserError
        If it cannot be read, is not a record, or was changed since it was written; one line that names the file.
    """
    record = read_json(path)
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
        _check_seal(record)
        _check_fields(record, SCHEMA, "")
        config = recorded_config(record["config"], "its configuration")
        _check_agreement(record, config)
    except (_Wrong, UserError) as wrong:
        raise UserError(
            f"{source} is not the record of a run: {wrong}; restore it, or delete it and run it again"
        ) from None
    return config


def finite_or_null(perplexities: Mapping[str, float]) -> Dict[str, Optional[float]]:
    """Perplexities as JSON can hold them: null for one that is infinite or not a number."""
    return {name: value if math.isfinite(value) else None for name, value in perplexities.items()}


class _Wrong(Exception):
    """What is wrong with a record."""


class Kind(NamedTuple):
    """What a value of a record may be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # NaN is not


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.datetime.fromisoformat(value))
    except ValueError:
        return False


def _one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


_TEXT = Kind("text", lambda value: isinstance(value, str))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_TEXTS = Kind("names with texts", lambda value: isinstance(value, dict) and all(map(_TEXT.holds, value.values())))
_COUNT = Kind("a whole number above 0", lambda value: type(value) is int and value > 0)
_POSITIVE = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
_AT_LEAST_0 = Kind("a finite number from 0 on", lambda value: _is_number(value) and value >= 0)
_SPREADS = Kind(
    "a list of finite numbers from 0 on",
    lambda value: isinstance(value, list) and all(_is_number(gamma) and gamma >= 0 for gamma in value),
)
_TIME = Kind("a time as ISO 8601 has it", _is_time)

# What every record has; in an object its fields, in a list its elements. Further fields are welcome.
SCHEMA: Dict[str, Any] = {
    "corpus": _TEXT,
    "gamma": _SPREADS,
    "parameters": _COUNT,
    "epochs": [
        {
            "epoch": _COUNT,
            "train_ppl": _POSITIVE,
            "valid_ppl": _POSITIVE,
            "seconds": _POSITIVE,
            "tokens_per_second": _POSITIVE,
            "gamma": _SPREADS,
        }
    ],
    "best_epoch": _or_null(_COUNT),
    "valid_ppl": _or_null(_POSITIVE),
    "test_ppl": _or_null(_OBJECT),  # its fields are below
    "status": _one_of("finished", "early-stopped", "diverged"),
    "config": _OBJECT,  # has a schema of its own, `Config`
    "corpus_sha256": Kind("64 hexadecimal digits", lambda value: _TEXT.holds(value) and len(value) == 64),
    "floor_ppl": _or_null(_POSITIVE),
    "git": _or_null(_TEXT),
    "versions": _TEXTS,
    "hardware": {"cpu": _TEXT, "threads": _COUNT, "device": _TEXT},
    "started": _TIME,
    "finished": _TIME,
}
# Null: not a finite number, as with so much noise that a word's probability is too small for a float.
_TEST_PPL = {name: _or_null(_POSITIVE) for name in ("clean", "bound", "averaged")}
# Of records since then.
_LIMIT = {"averaged_limit": _or_null(_POSITIVE), "averaged_limit_error": _or_null(_AT_LEAST_0)}
# Copied from the configuration, for those who read records without it.
_COPIES = ("cell", "activation", "layers", "hidden", "method", "seed", "dtype")


def _check_seal(record: Mapping[str, Any]) -> None:
    if "digest" not in record:
        raise _Wrong("it has no 'digest'")
    try:
        intact = seal(record)["digest"] == record["digest"]
    except (ValueError, RecursionError):  # a number that JSON does not have; brackets without end
        intact = False
    if not intact:
        raise _Wrong("it was changed after it was written (its digest is that of another content)")


def _check_fields(value: Any, expected: Any, where: str) -> None:
    """Check a value against a `Kind`, against an object's fields, or against the one element that a list repeats."""
    if isinstance(expected, Kind):
        if not expected.holds(value):
            raise _Wrong(f"{where} is {_short(value)}, not {expected.words}")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise _Wrong(f"{where} is {_short(value)}, not a list")
        for index, element in enumerate(value, 1):
            _check_fields(element, expected[0], f"{where} {index}")
    else:
        if not isinstance(value, dict):
            raise _Wrong(f"{where} is {_short(value)}, not an object")
        for name, kind in expected.items():
            if name not in value:
                raise _Wrong(f"{where or 'it'} has no '{name}'")
            _check_fields(value[name], kind, f"{where} {name}".lstrip())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _check_agreement(record: Mapping[str, Any], config: Config) -> None:
    """Check that what a record says twice, it says alike, and that what follows from its epochs does follow."""
    noisy = config.acts("noise")
    copies = {**{name: getattr(config, name) for name in _COPIES}, "noise": config.noise if noisy else None}
    for name, expected in copies.items():
        if repr(record.get(name, "missing")) != repr(expected):  # 1, 1.0 and true are equal, but not the same
            raise _Wrong(f"{name} is {_short(record.get(name, 'missing'))}, but {expected!r} in its configuration")
    # Another text must not pass for one of these.
    if {record["corpus"], config.corpus} & set(NAMES) and record["corpus"] != config.corpus:
        raise _Wrong(f"corpus is {_short(record['corpus'])}, but {_short(config.corpus)} in its configuration")
    _check_epochs(record["epochs"], config, config.layers if noisy else 0)
    _check_best(record, config)


def _check_epochs(epochs: List[Dict[str, Any]], config: Config, spreads: int) -> None:
    if [entry["epoch"] for entry in epochs] != list(range(1, len(epochs) + 1)):
        raise _Wrong("its epochs are not numbered 1, 2, ...")
    if len(epochs) > config.epochs:
        raise _Wrong(f"it has {len(epochs)} epochs of {config.epochs}")
    for entry in epochs:
        if len(entry["gamma"]) != spreads:
            raise _Wrong(f"epochs {entry['epoch']} gamma has {len(entry['gamma'])} values, not {spreads}")


def _check_best(record: Mapping[str, Any], config: Config) -> None:
    epochs, test = record["epochs"], record["test_ppl"]
    if record["status"] == "finished" and len(epochs) != config.epochs:
        raise _Wrong(f"status is finished after {len(epochs)} epochs of {config.epochs}")
    if not epochs:
        if (record["status"], record["best_epoch"], record["valid_ppl"], test) != ("diverged", None, None, None):
            raise _Wrong("it has perplexities, or has not diverged, without any epoch")
        if record["gamma"]:
            raise _Wrong("it has gamma without any epoch")
        return
    best = min(epochs, key=lambda entry: entry["valid_ppl"])  # the first of equals, as early stopping has it
    for name, expected in (("best_epoch", best["epoch"]), ("valid_ppl", best["valid_ppl"]), ("gamma", best["gamma"])):
        if record[name] != expected:
            raise _Wrong(f"{name} is {_short(record[name])}, but its best epoch makes it {_short(expected)}")
    limits = _LIMIT if set(_LIMIT) & set(test or ()) else {}
    _check_fields(test, {**_TEST_PPL, "samples": _COUNT, **limits}, "test_ppl")
    limit, averaged, bound = (test.get(name) or math.inf for name in ("averaged_limit", "averaged", "bound"))
    if averaged > bound * (1 + 1e-6):  # Jensen's inequality, up to rounding
        raise _Wrong("its averaged test perplexity is above its bound")
    if math.isfinite(limit) and limit > averaged * (1 + 1e-6):
        raise _Wrong("the limit of its averaged test perplexity is above it")
