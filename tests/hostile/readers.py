"""Every reader of files with what it promises: a valid result or its one refusal, whatever the bytes are.

The tests call these with examples of hypothesis, and `fuzz.py` with those of a coverage-guided fuzzer.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Tuple, Type

import mxnet as mx
import numpy as np
import safetensors.numpy
from helpers.processes import ROOT
from helpers.records import sealed_anew
from mxnet import gluon

import noisin
from benchmarks import report
from experiments.report.runs import load_runs
from noisin.config import Config, config_from_dict
from noisin.data.corpus import OWN_VOCABULARY, load_corpus
from noisin.data.encoding import ordered_vocabulary
from noisin.runs.directory import RunDirectory, _fingerprint
from noisin.runs.formats import seal
from noisin.system.errors import UserError
from noisin.system.files import parse_json, read_json
from noisin.tuning import Space, Study

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


def read_options(content: bytes) -> None:
    config = config_from_dict(read_json(put(content, "options.json")))
    assert config_from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def read_run(content: bytes) -> None:
    RunDirectory(put(sealed_anew(content), "begun", "config.json").parent).read_config()


def read_state(content: bytes) -> None:
    directory = RunDirectory(put(sealed_anew(content), "run", "state.json").parent)
    put(RUN, "run", "config.json")
    for name in ("epoch", "best"):
        put(WEIGHTS, "run", f"{name}-0001.safetensors")
    progress = directory.recover(lambda line: None)
    assert progress == directory.load()
    assert all(entry["epoch"] == number for number, entry in enumerate(progress.epochs, 1))


def read_weights(content: bytes) -> None:
    """As the weights of a checkpoint whose state names their sha256: that alone protects from accidents only."""
    path = put(content, "weights", "best-0001.safetensors")
    put(RUN, "weights", "config.json")
    put(state_of(content), "weights", "state.json")
    MODEL.weight.set_data(mx.nd.zeros((2, 3)))
    RunDirectory(path.parent).load_best_weights(MODEL)
    assert np.isfinite(MODEL.weight.data().asnumpy()).all()


def state_of(weights: bytes, **changes: Any) -> bytes:
    """A sealed state whose files hold these weights, its progress with some changes."""
    digest = hashlib.sha256(weights).hexdigest()
    files = {which: {"name": f"{which}-0001.safetensors", "sha256": digest} for which in ("epoch", "best")}
    return json.dumps(seal({**STATE, "files": files, "progress": {**STATE["progress"], **changes}})).encode()


def run_of(words: bytes) -> bytes:
    """The sealed `config.json` of a run with this vocabulary."""
    content = {"config": CONFIG.to_dict(), "corpus_sha256": "0" * 64, "version": noisin.__version__}
    return json.dumps(seal({**content, "vocabulary_sha256": hashlib.sha256(words).hexdigest()})).encode()


def read_vocabulary(content: bytes) -> None:
    """As one whose sha256 the run names."""
    put(run_of(content), "words", "config.json")
    types = RunDirectory(put(content, "words", "vocabulary.txt").parent).read_vocabulary()
    vocabulary = ordered_vocabulary(types)
    assert vocabulary.idx_to_token == types and vocabulary[types] == list(range(len(types)))


def read_text(content: bytes) -> None:
    corpus = load_corpus(str(put(content, "own.txt")))
    types = corpus.vocabulary.idx_to_token
    assert types[:2] == ["<unk>", "<eos>"] and len(types) <= OWN_VOCABULARY
    for split in (corpus.train, corpus.valid, corpus.test):
        assert split.size and 0 <= split.min() and split.max() < len(types)


def read_measurements(content: bytes) -> None:
    results = report.read_results(put(content, "results.json"))
    for workload in report.workloads_in(results):
        report.table(results, workload)
        report.ratios(results, workload)
    assert all(report.step_milliseconds(entry) > 0 for entry in results["growth"])


def read_records(content: bytes) -> None:
    """As a record and, sealed anew if it is JSON, past the digest as well."""
    folder = put(sealed_anew(content), "results", "figure2", "record.json").parents[1]
    assert len(load_runs(folder)) == 1


def read_study(content: bytes) -> None:
    lines = b"\n".join(map(sealed_anew, content.split(b"\n")))
    study = Study(put(lines, "study", "study.jsonl").parent, SPACE, CORPUS)
    assert len(study.table()) == len(study.ended())


def _study() -> bytes:
    study = Study(put(b"", "study", "study.jsonl").parent, SPACE, CORPUS)
    trial = study.optuna.ask()
    SPACE.suggest(trial)
    trial.report(9.5, 1)
    study.optuna.tell(trial, 9.5)
    return (FOLDER / "study" / "study.jsonl").read_bytes()


SPACE, CORPUS = Space(["noisin"], {}), load_corpus("synthetic")
MODEL = gluon.nn.Dense(2, in_units=3, use_bias=False)
MODEL.initialize()
WEIGHTS = safetensors.numpy.save(
    {"weight:weight": np.ones((2, 3), np.float32), "optimizer:0:0": np.zeros((2, 3), np.float32)}
)
CONFIG = Config(method="noisin*", noise="gamma", noise_parameters={"k": 2.0})
OPTIONS = json.dumps(CONFIG.to_dict()).encode()
WORDS = b"<unk>\n<eos>\ndax\nzorp\n\xc3\xa9\n"
RUN = run_of(WORDS)
EPOCH = {"epoch": 1, "train_ppl": 9.5, "valid_ppl": 8.5, "seconds": 0.5, "tokens_per_second": 99.0, "gamma": [0.2]}
ORIGIN = {"git": None, "versions": {"numpy": "2.0"}, "hardware": {"cpu": "a processor", "threads": 1, "device": "cpu"}}
STATE: Dict[str, Any] = {
    "run": _fingerprint(json.loads(RUN)),
    "progress": {
        "epochs": [EPOCH],
        "best_epoch": 1,
        "valid_ppl": 8.5,
        "updates": 7,
        "exploding": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "status": "running",
        "reason": None,
        "origins": [ORIGIN],
    },
}

READERS = {
    "json": Reader(read_parsed_json, OPTIONS, (ValueError,)),
    "options": Reader(read_options, OPTIONS),
    "run": Reader(read_run, RUN),
    "state": Reader(read_state, state_of(WEIGHTS)),
    "weights": Reader(read_weights, WEIGHTS),
    "vocabulary": Reader(read_vocabulary, WORDS),
    "text": Reader(read_text, b"dax zorp \xc3\xa9\n" * 12),
    "measurements": Reader(read_measurements, (ROOT / "benchmarks" / "results.json").read_bytes()),
    "study": Reader(read_study, _study()),
    "record": Reader(read_records, min((ROOT / "experiments" / "results" / "figure2").glob("*.json")).read_bytes()),
}
