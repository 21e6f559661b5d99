"""What the JSON files of a run hold: a schema for each, the rules between their fields, and the seal on all of it.

The seal is `digest`, the sha256 of everything else in the file. It finds damage and numbers that were changed later,
not somebody who computes the digest anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Callable, Dict, List, Mapping, Optional

import fastjsonschema

from noisin.config import Config
from noisin.system.errors import plural, short_repr

LARGEST = 1e100  # any number in a file, so that sums, means and deviations of several stay finite
_MOST_EPOCHS, _MOST_LAYERS, _MOST_SAMPLES = 10_000, 64, 1000  # as many as `Config` takes


class Wrong(Exception):
    """What is wrong with the contents of a file."""


@dataclass
class Progress:
    """Where a run stands after its last whole epoch."""

    epochs: List[Dict[str, Any]] = field(default_factory=list)
    best_epoch: Optional[int] = None
    valid_ppl: Optional[float] = None  # of the best epoch
    updates: int = 0
    exploding: int = 0  # batches in a row, up to the last one, whose loss has exploded
    started: str = ""
    status: str = "running"
    reason: Optional[str] = None  # why it diverged, if it did
    origins: List[Dict[str, Any]] = field(default_factory=list)  # what trained it, each once, the first one first


# ---- the schemas ---------------------------------------------------------------------------------------------------
# `description` is what a message says is expected. In draft 4 of JSON Schema 1.0 is no integer.

Schema = Dict[str, Any]


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"], "description": f"{schema['description']}, or null"}


def _number(words: str, least: float, exclusive: bool = False) -> Schema:
    bounds = {"minimum": least, "exclusiveMinimum": exclusive, "maximum": LARGEST}
    return {"type": "number", **bounds, "description": f"{words} to {LARGEST:g}"}


def _integer(least: int, most: int) -> Schema:
    return {
        "type": "integer",
        "minimum": least,
        "maximum": most,
        "description": f"a whole number from {least} to {most}",
    }


def _text(most: int = 300, pattern: str = r"^[^\x00-\x1f\x7f-\x9f]*$", words: str = "") -> Schema:
    words = words or f"text of at most {most} characters, none of them for control"
    return {"type": "string", "maxLength": most, "pattern": pattern, "description": words}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values), "description": f"one of {', '.join(values)}"}


def _list(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": most, "description": f"a list of at most {most}"}


def _object(fields: Schema, **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**fields, **optional},
        "required": list(fields),
        "additionalProperties": False,
        "description": "an object",
    }


_POSITIVE = _number("a number above 0, up", 0, exclusive=True)
_PERPLEXITY = _number("a perplexity, from 1", 0.99)  # rounding leaves some below 1
_SPREAD = _number("a number from 0", 0)
_SPREADS = {**_list(_SPREAD, _MOST_LAYERS), "description": f"a list of numbers, at most {_MOST_LAYERS}"}
_EPOCH_NUMBER = _integer(1, _MOST_EPOCHS)
_SHA256 = _text(64, "^[0-9a-f]{64}$", "64 hexadecimal digits")
_TIME = _text(
    40, r"^\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d(\.\d+)?([+-]\d\d:\d\d|Z)$", "a time as ISO 8601 has it"
)
_FILES = {
    which: _object({"name": _text(40, f"^{which}-[0-9]{{4,9}}[.]safetensors$", "a file of weights"), "sha256": _SHA256})
    for which in ("epoch", "best")
}
_CONFIG = {"type": "object", "description": "an object"}  # has a schema of its own, `Config`
_EPOCHS = _list(
    _object(
        {
            "epoch": _EPOCH_NUMBER,
            "train_ppl": _PERPLEXITY,
            "valid_ppl": _PERPLEXITY,
            "seconds": _POSITIVE,
            "tokens_per_second": _POSITIVE,
            "gamma": _SPREADS,
        },
        input_gamma=_SPREAD,
    ),
    _MOST_EPOCHS,
)
_COMMIT = r"[0-9a-f]{7,64}\+?"  # as `git_revision` has it
_THREADS = _integer(1, 100_000)
# What made a run may have changed with each of its epochs; a record has everything in one text.
_LONG = 100 * _MOST_EPOCHS


def _origin(longest: int, threads: Schema) -> Dict[str, Schema]:
    """The commit, the versions and the machine that made a run."""
    return {
        "git": _or_null(_text(longest, f"^{_COMMIT}(, {_COMMIT})*$", "commits, as git names them")),
        "versions": {
            "type": "object",
            "patternProperties": {r"^[A-Za-z0-9_.-]{1,40}$": _text(longest)},
            "additionalProperties": False,
            "maxProperties": 20,
            "description": "names with texts, at most 20",
        },
        "hardware": _object({"cpu": _text(longest), "threads": threads, "device": _text(longest)}),
    }


_SCHEMAS: Dict[str, Schema] = {
    "run": _object(
        {
            "config": _CONFIG,
            "corpus_sha256": _SHA256,
            "vocabulary_sha256": _SHA256,
            "version": _text(),
            "digest": _SHA256,
        }
    ),
    "state": _object(
        {
            "run": _SHA256,
            "files": _object(_FILES),
            "progress": _object(
                {
                    "epochs": {**_EPOCHS, "minItems": 1},
                    "best_epoch": _EPOCH_NUMBER,
                    "valid_ppl": _PERPLEXITY,
                    "updates": _integer(0, 2**53),
                    "exploding": _integer(0, 2**53),
                    "started": _TIME,
                    "status": _one_of("running", "finished", "early-stopped", "diverged"),
                    "reason": _or_null(_text()),
                    "origins": {**_list(_object(_origin(300, _THREADS)), _MOST_EPOCHS), "minItems": 1},
                }
            ),
            "digest": _SHA256,
        }
    ),
    "record": _object(
        {
            "corpus": _text(1100),  # the name of a file, each byte of it escaped
            # Copies of the configuration, for those who read records without it: compared with it.
            **{name: {} for name in ("cell", "activation", "layers", "hidden", "method", "noise", "seed", "dtype")},
            "gamma": _SPREADS,
            "parameters": _integer(1, 2**53),
            "epochs": _EPOCHS,
            "best_epoch": _or_null(_EPOCH_NUMBER),
            "valid_ppl": _or_null(_PERPLEXITY),
            "test_ppl": _or_null(
                _object(
                    {
                        # Null: not a finite number, as with so much noise that a word's probability is too small for
                        # a float.
                        **{name: _or_null(_PERPLEXITY) for name in ("clean", "bound", "averaged")},
                        "samples": _integer(1, _MOST_SAMPLES),
                    },
                    # Not in older records; as an estimate, the limit may be below 1.
                    averaged_limit=_or_null(_POSITIVE),
                    averaged_limit_error=_or_null(_number("a number from 0", 0)),
                    # Of runs with --eval-particles.
                    marginal=_or_null(_PERPLEXITY),
                    marginal_deviation=_or_null(_number("a number from 0", 0)),
                    effective_particles=_or_null(_number("a number from 1", 0.99)),  # up to rounding
                    particles=_integer(1, 10**5),
                    repetitions=_integer(1, 10**5),
                )
            ),
            "status": _one_of("finished", "early-stopped", "diverged"),
            "config": _CONFIG,
            "corpus_sha256": _SHA256,
            "floor_ppl": _or_null(_PERPLEXITY),
            **_origin(
                _LONG,
                {  # a list where a run was resumed with another number
                    **_THREADS,
                    **_list(_THREADS, _MOST_EPOCHS),
                    "type": ["integer", "array"],
                    "description": "a whole number above 0, or a list of them",
                },
            ),
            "started": _TIME,
            "finished": _TIME,
            "digest": _SHA256,
        },
        reason=_or_null(_text()),  # not in older records
    ),
}


@lru_cache(maxsize=None)
def _validator(name: str) -> Callable[[Any], Any]:
    draft = {"$schema": "http://json-schema.org/draft-04/schema#"}
    return fastjsonschema.compile({**draft, **_SCHEMAS[name]}, use_default=False)


def _check_schema(content: Any, name: str) -> None:
    try:
        _validator(name)(content)
    except fastjsonschema.JsonSchemaValueException as wrong:
        raise Wrong(_in_words(wrong)) from None


def _in_words(wrong: fastjsonschema.JsonSchemaValueException) -> str:
    where = " ".join(str(int(part) + 1) if part.isdigit() else part for part in wrong.path[1:])
    properties = wrong.definition.get("properties")
    if wrong.rule == "required":
        return f"{where or 'it'} has no '{next(name for name in wrong.rule_definition if name not in wrong.value)}'"
    if wrong.rule == "additionalProperties" and properties:
        return f"{where or 'it'} has the unknown field {short_repr(min(set(wrong.value) - set(properties)))}"
    return f"{where or 'it'} is {short_repr(wrong.value)}, not {wrong.definition['description']}"


# ---- the seal ------------------------------------------------------------------------------------------------------


def seal(content: Mapping[str, Any]) -> Dict[str, Any]:
    """The content with the digest of all the rest of it, instead of one that it may have."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    # Canonical: keys in order, no spaces, ASCII, and floats as `repr` has them, which is exact.
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}


def check_sealed(content: Mapping[str, Any], name: str) -> None:
    """Check the seal, then every field.

    Parameters
    ----------
    content : mapping
        As JSON gives it.
    name : {'run', 'state', 'record'}
        The file's schema.

    Raises
    ------
    Wrong
        Naming the field, its value and what was expected.
    """
    if "digest" not in content:
        raise Wrong("it has no 'digest'")
    try:
        intact = seal(content)["digest"] == content["digest"]
    except (ValueError, RecursionError):  # a number that JSON does not have; brackets without end
        intact = False
    if not intact:
        raise Wrong("it was changed after it was written")
    _check_schema(content, name)


# ---- rules between fields ------------------------------------------------------------------------------------------


def check_progress(progress: Mapping[str, Any], config: Config) -> None:
    """Check that the epochs of a run, in its state or its record, are whole and that the best one follows from them.

    Raises
    ------
    Wrong
    """
    epochs = progress["epochs"]
    if [entry["epoch"] for entry in epochs] != list(range(1, len(epochs) + 1)):
        raise Wrong("its epochs are not numbered 1, 2, ...")
    if len(epochs) > config.epochs:
        raise Wrong(f"it has {plural(len(epochs), 'epoch')} of {config.epochs}")
    spreads = config.layers if config.acts("noise") else 0
    for entry in epochs:
        if len(entry["gamma"]) != spreads:
            raise Wrong(f"epochs {entry['epoch']} gamma has {plural(len(entry['gamma']), 'value')}, not {spreads}")
    best = best_of(epochs)
    for name, key in (("best_epoch", "epoch"), ("valid_ppl", "valid_ppl")):
        expected = best[key] if best else None
        if progress[name] != expected:
            raise Wrong(f"{name} is {short_repr(progress[name])}, but its best epoch makes it {short_repr(expected)}")


def best_of(epochs: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """The epoch with the lowest validation perplexity, the first of equals; None without any."""
    return min(epochs, key=lambda entry: entry["valid_ppl"], default=None)


def differences(before: Any, now: Any, name: str = "") -> List[str]:
    """What differs between two JSON values, as 'name was 1, is 2'; of digests of texts, that they do."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(set(before) | set(now)):
            found += differences(before.get(key), now.get(key), key)
        return found
    if before != now and name == "corpus_sha256":
        return ["the text is another one"]
    return [] if before == now else [f"{name} was {short_repr(before)}, is {short_repr(now)}"]
