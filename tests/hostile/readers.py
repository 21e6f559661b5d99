"""Every reader of files with what it promises: a valid result or its one refusal, whatever the bytes are.

The tests call these with examples of hypothesis, and `fuzz.py` with those of a coverage-guided fuzzer.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Tuple, Type
from unittest import mock

import mxnet as mx
import numpy as np
from helpers.processes import ROOT
from mxnet import gluon

from benchmarks import report
from experiments.report.runs import load_runs
from noisin.config import Config, config_from_dict
from noisin.data import cache
from noisin.data.corpus import OWN_VOCABULARY, load_corpus
from noisin.data.encoding import ordered_vocabulary
from noisin.data.published import SPLITS
from noisin.runs.directory import RunDirectory
from noisin.runs.record import seal
from noisin.runs.weights import parse_arrays
from noisin.system.errors import UserError
from noisin.system.files import parse_json, read_json

FOLDER = Path(tempfile.mkdtemp(prefix="noisin-hostile-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)  # below /tmp: what cannot be removed harms nobody


@dataclass(frozen=True)
class Reader:
    """A reader as a function of the file's contents.

    Parameters
    ----------
    read : callable
        Reads the contents it is given, and asserts what holds of a valid result.
    valid : bytes
        What it accepts.
    refuses : tuple of exceptions
        The only ones that it may end with.
    """

    read: Callable[[bytes], Any]
    valid: bytes
    refuses: Tuple[Type[Exception], ...] = (UserError,)

    def accepts(self, content: bytes) -> bool:
        """Whether the contents were read; anything but a result or a refusal of one line is raised."""
        try:
            self.read(content)
        except self.refuses as refusal:
            assert not isinstance(refusal, UserError) or str(refusal).isprintable()
            return False
        return True


def put(content: bytes, *names: str) -> Path:
    """The contents as a file."""
    path = FOLDER.joinpath(*names)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_parsed_json(content: bytes) -> None:
    value = parse_json(content)
    assert parse_json(json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")) == value


def read_arrays(content: bytes) -> None:
    arrays = parse_arrays(content)
    theirs = mx.nd.load(str(put(content, "read.params"))) if arrays else {}  # without any they forget the names
    assert set(arrays) == set(theirs)
    assert all(np.array_equal(values, theirs[name].asnumpy()) for name, values in arrays.items())


def read_options(content: bytes) -> None:
    config = config_from_dict(read_json(put(content, "options.json")))
    assert config_from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def read_run(content: bytes) -> None:
    RunDirectory(put(content, "begun", "config.json").parent).read_config()


def read_state(content: bytes) -> None:
    directory = RunDirectory(put(content, "run", "state.json").parent)
    put(WEIGHTS, "run", "epoch-0001.params")
    progress = directory.recover(lambda line: None)
    assert progress == directory.load()
    assert all(entry["epoch"] == number for number, entry in enumerate(progress.epochs, 1))


def read_weights(content: bytes) -> None:
    """As the weights of a checkpoint whose state names their sha256: that alone protects from accidents only."""
    path = put(content, "weights", "best-0001.params")
    named = {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    progress = {**STATE["progress"], "best_epoch": 1, "best_valid_ppl": EPOCH["valid_ppl"]}
    put(json.dumps({"files": {"last": named, "best": named}, "progress": progress}).encode(), "weights", "state.json")
    MODEL.weight.set_data(mx.nd.zeros((2, 3)))
    RunDirectory(path.parent).load_best_weights(MODEL)
    assert np.isfinite(MODEL.weight.data().asnumpy()).all()


def read_vocabulary(content: bytes) -> None:
    types = RunDirectory(put(content, "words", "vocabulary.txt").parent).read_vocabulary()
    vocabulary = ordered_vocabulary(types)
    assert vocabulary.idx_to_token == types and vocabulary[types] == list(range(len(types)))


def read_text(content: bytes) -> None:
    with mock.patch.dict(os.environ, NOISIN_CACHE=str(FOLDER / "cache")):
        corpus = load_corpus(str(put(content, "own.txt")))
    types = corpus.vocabulary.idx_to_token
    assert types[:2] == ["<unk>", "<eos>"] and len(types) <= OWN_VOCABULARY
    for split in (corpus.train, corpus.valid, corpus.test):
        assert split.size and 0 <= split.min() and split.max() < len(types)
    shutil.rmtree(FOLDER / "cache")  # it would grow with every text


def read_cache(content: bytes) -> None:
    assert cache._read_cache(put(content, f"{CACHE_KEY}.npz")) is not None, "None stands for a refusal"


def read_measurements(content: bytes) -> None:
    results = report.read_results(put(content, "results.json"))
    for workload in report.workloads_in(results):
        report.table(results, workload)
        report.ratios(results, workload)
    assert all(report.step_milliseconds(entry) > 0 for entry in results["growth"])


def read_records(content: bytes) -> None:
    """As a record and, sealed anew if it is JSON, past the digest as well."""
    folder = put(content, "results", "figure2", "record.json").parents[1]
    try:
        content = json.dumps(seal(parse_json(content))).encode()
    except (ValueError, AttributeError):  # not JSON, or not an object: left as it is
        load_runs(folder)
    else:
        put(content, "results", "figure2", "record.json")
        assert len(load_runs(folder)) == 1


def _params() -> bytes:
    path = FOLDER / "valid.params"
    mx.nd.save(str(path), {"weight:weight": mx.nd.ones((2, 3)), "optimizer:0:0": mx.nd.zeros((2, 3))})
    return path.read_bytes()


def _cache() -> bytes:
    splits = {split: np.array([0, 1, 2], dtype=np.int32) for split in SPLITS}
    path = FOLDER / f"{CACHE_KEY}.npz"
    cache._write_cache(path, ["<unk>", "<eos>", "dax"], splits)
    return path.read_bytes()


CACHE_KEY = "key"
MODEL = gluon.nn.Dense(2, in_units=3, use_bias=False)
MODEL.initialize()
WEIGHTS = _params()
EPOCH = {"epoch": 1, "train_ppl": 9.5, "valid_ppl": 8.5, "seconds": 0.5, "tokens_per_second": 99.0, "gamma": [0.2]}
STATE: Dict[str, Any] = {
    "files": {"last": {"name": "epoch-0001.params", "sha256": hashlib.sha256(WEIGHTS).hexdigest()}},
    "progress": {
        "epochs": [EPOCH],
        "best_epoch": None,
        "best_valid_ppl": None,
        "updates": 7,
        "started": "2026-01-01T00:00:00+00:00",
        "status": "running",
    },
}
OPTIONS = json.dumps(Config(method="noisin*", noise="gamma", noise_parameters={"k": 2.0}).to_dict()).encode()

READERS = {
    "json": Reader(read_parsed_json, OPTIONS, (ValueError,)),
    "params": Reader(read_arrays, WEIGHTS, (ValueError,)),
    "options": Reader(read_options, OPTIONS),
    "run": Reader(read_run, b'{"config": ' + OPTIONS + b"}"),
    "state": Reader(read_state, json.dumps(STATE).encode()),
    "weights": Reader(read_weights, WEIGHTS),
    "vocabulary": Reader(read_vocabulary, b"<unk>\n<eos>\ndax\nzorp\n\xc3\xa9\n"),
    "text": Reader(read_text, b"dax zorp \xc3\xa9\n" * 12),
    "cache": Reader(read_cache, _cache(), (AssertionError,)),
    "measurements": Reader(read_measurements, (ROOT / "benchmarks" / "results.json").read_bytes()),
    "record": Reader(read_records, min((ROOT / "experiments" / "results" / "figure2").glob("*.json")).read_bytes()),
}
