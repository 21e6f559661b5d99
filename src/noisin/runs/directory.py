"""The run directory: configuration, metrics, weights, and all that an exact resume needs. No pickle anywhere.

    config.json             the resolved configuration, package version, sha256 of corpus and vocabulary.txt; sealed
    vocabulary.txt          the word types, one a line by id: all that sampling needs of the corpus
    state.json              progress so far; names the run and the two files below with their sha256; sealed
    state-before.json       the same of the checkpoint before, whose files are kept too
    epoch-0007.safetensors  weights and optimizer state after epoch 7; kept after the end for a run with more --epochs
    best-0005.safetensors   weights of the best validation epoch
    metrics.jsonl           one line an epoch, for people and plots
    record.json             the finished run (docs/formats.md); sealed
    lock                    held by the process that trains
    events/                 for TensorBoard, if asked for

Every file is written to the side, flushed and renamed. `state.json` is what counts: a kill before its rename leaves the
previous one, whose files are still there. Should it or its files be damaged later, the checkpoint before is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
from mxnet.gluon import Block, Trainer

import noisin
from noisin.config import Config, recorded_config
from noisin.data.corpus import Corpus
from noisin.data.encoding import END, UNKNOWN
from noisin.data.published import NAMES
from noisin.runs.formats import Progress, Wrong, check_progress, check_sealed, differences, seal
from noisin.runs.record import read_record
from noisin.runs.weights import pack, set_optimizer, set_parameters, unpack
from noisin.system.errors import UserError, plural
from noisin.system.files import BRIEF, hold_folder, is_locked, read_json, read_regular, write_file, write_json

_ADVICE = "restore the file, or train again with another --run-dir"
WEIGHTS = re.compile(r"(epoch|best)-\d{4,9}\.safetensors")  # names of the files of weights


class RunDirectory:
    """A directory that holds one run.

    Parameters
    ----------
    path : str or Path
        Created by `lock` if it is not there.
    """

    def __init__(self, path: Any) -> None:
        self.path = Path(path)

    @property
    def record_path(self) -> Path:
        return self.path / "record.json"

    @contextmanager
    def lock(self, patience: float = BRIEF) -> Iterator[None]:
        """Make the directory and keep every other process from training in it meanwhile.

        Parameters
        ----------
        patience : float, default 3
            Seconds to wait for another process.

        Raises
        ------
        UserError
            If it cannot be made or written, or another process trains there.
        """
        try:
            str(self.path).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"run directory {self.path}: its name is not in UTF-8; give another one") from None
        try:
            lock = hold_folder(self.path, patience)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot make the run directory {self.path}: {reason}; give another --run-dir") from None
        with lock:
            yield

    def begin(self, config: Config, corpus: Corpus) -> None:
        """Start the run of this configuration and text, or re-enter it: also from elsewhere, or with more epochs.

        Raises
        ------
        UserError
            If the directory holds another run, naming what differs, or one that cannot be told, that has ended before
            its last epoch, or that has more epochs; or if it cannot be written.
        """
        words = _lines_of_words(corpus)
        identity = seal({"config": config.to_dict(), **_digests(corpus), "version": noisin.__version__})
        before = None
        if (self.path / "config.json").exists():
            before = self._identity()
            self._check_same(before, identity)
        elif any(self.path.glob("*/config.json")):
            raise UserError(f"{self.path} contains runs but is not a run directory: give another --run-dir")
        for left in ("record.json", "state.json", "state-before.json"):
            if before is None and (self.path / left).exists():
                raise UserError(
                    f"{self.path} has a {left} but no config.json to say of which run: give another --run-dir"
                )
        if identity != before:  # the text has moved, or there are more epochs
            write_json(self.path / "config.json", identity)
        path = self.path / "vocabulary.txt"
        if not path.exists() or read_regular(path, "the vocabulary of this run") != words:
            write_file(path, words)

    def _check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to take up the run that lies here under an identity that is not its own."""
        different = differences(_lasting(before), _lasting(now))
        if not different and before["vocabulary_sha256"] != now["vocabulary_sha256"]:
            different.append("its word types differ although the text is the same, e.g. by another GluonNLP")
        had, wanted = before["config"]["epochs"], now["config"]["epochs"]
        if wanted < had:
            different.append(f"epochs was {had}, is {wanted}")
        if different:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(different)}): give it the same options, text and version "
                "of noisin, and no fewer epochs, or give another --run-dir"
            )
        record = self._read_record(before) if self.record_path.exists() else None
        if record is not None and record["status"] != "finished" and wanted > record["config"]["epochs"]:
            epochs = plural(len(record["epochs"]), "epoch")
            raise UserError(
                f"{self.path} holds a run that is {record['status']} after {epochs}: more "
                "--epochs would add none; give another --run-dir"
            )

    @property
    def in_use(self) -> bool:
        """Whether a process trains here now."""
        return is_locked(self.path / "lock")

    def read_config(self) -> Config:
        """The configuration of the run that lies here.

        Raises
        ------
        UserError
            If there is none, or it is damaged; also in `read_record` and `read_vocabulary`.
        """
        return recorded_config(self._identity()["config"])

    @property
    def corpus_sha256(self) -> str:
        """The digest of the text that the run is trained on."""
        return self._identity()["corpus_sha256"]

    def is_of(self, corpus: Corpus) -> bool:
        """Whether the run that lies here is trained on this text, with these word types."""
        identity = self._identity()
        return all(identity[name] == digest for name, digest in _digests(corpus).items())

    def read_record(self) -> Optional[Dict[str, Any]]:
        """The record of the run that lies here; None while it trains, be it for more epochs than its record has."""
        identity = self._identity()
        record = self._read_record(identity) if self.record_path.exists() else None
        return record if record and record["config"]["epochs"] == identity["config"]["epochs"] else None

    def _read_record(self, identity: Mapping[str, Any]) -> Dict[str, Any]:
        record = read_record(self.record_path)
        config = recorded_config(record["config"]).to_dict()
        if _lasting({**identity, "config": config, "corpus_sha256": record["corpus_sha256"]}) != _lasting(identity):
            raise UserError(f"{self.record_path} is another run's record: delete it to continue this run")
        return record

    def _identity(self) -> Dict[str, Any]:
        """What `config.json` says: whose run this is."""
        path = self.path / "config.json"
        if not path.exists():
            what = "holds no run (it has no config.json)" if self.path.exists() else "does not exist"
            raise UserError(f"{self.path} {what}: give a directory made by noisin train")
        try:
            content = read_json(path)
        except UserError as error:
            raise UserError(f"{error}; {_ADVICE}") from None
        if "digest" not in content:
            raise UserError(
                f"{path} was written by an older version of noisin, or by hand: train again with another --run-dir"
            )
        try:
            check_sealed(content, "run")
        except Wrong as wrong:
            raise UserError(f"{path} is damaged: {wrong}; {_ADVICE}") from None
        return {**content, "config": recorded_config(content["config"], str(path)).to_dict()}

    def read_vocabulary(self) -> List[str]:
        """The word types of the run that lies here, by id."""
        path = self.path / "vocabulary.txt"
        if not path.exists():
            raise UserError(f"{path} is missing: repeat the command that trained the run, which writes it")
        content = read_regular(path, "word types")
        if hashlib.sha256(content).hexdigest() != self._identity()["vocabulary_sha256"]:
            raise UserError(
                f"{path} is damaged: its sha256 is not the one in config.json; repeat the command that trained the "
                "run, which writes it anew"
            )
        self._check_number_of_words(content)
        try:
            *types, rest = content.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is damaged: it is not UTF-8 ({error.reason})") from None
        if (
            rest
            or types[:2] != [UNKNOWN, END]
            or len(set(types)) < len(types)
            or any(len(t.split()) != 1 for t in types)
        ):
            raise UserError(f"{path} is damaged: it is not {UNKNOWN}, {END} and then words, one a line and each once")
        return types

    def _check_number_of_words(self, words: bytes) -> None:
        """Compare the number of words with the weights', before parsing takes many times the file's size."""
        state = self.path / "state.json"
        if state.exists():
            with self._advice():
                embedding = self._read_arrays("best", state).get("weight:embedding_weight", ())
            if words.count(b"\n") != len(embedding):
                path = self.path / "vocabulary.txt"
                raise UserError(f"{path} is damaged: the run's weights are of {len(embedding):,} words; {_ADVICE}")

    def load(self) -> Optional[Progress]:
        """Progress at the last checkpoint, or None for a run that has none yet."""
        path = self.path / "state.json"
        if not path.exists() and not self._has_weights:
            return None
        with self._advice():
            return self._read_state(path)[0]

    def recover(self, report: Callable[[str], None]) -> Optional[Progress]:
        """As `load`, from the newest checkpoint that is whole, which is then the last one.

        Parameters
        ----------
        report : callable
            Is told if that is not the newest.

        Raises
        ------
        UserError
            If there are checkpoints and none is whole.
        """
        newest, before = self.path / "state.json", self.path / "state-before.json"
        if not newest.exists() and not before.exists() and not self._has_weights:
            return None
        with self._advice(train_again=True):
            try:
                return self._read_whole(newest)
            except UserError as damage:
                if not before.exists():
                    raise
                progress = self._read_whole(before)
                report(f"{damage}; the checkpoint before it is used")
        write_json(newest, read_json(before))
        return progress

    @property
    def _has_weights(self) -> bool:
        """Whether the record of this run says that an epoch was finished."""
        return self.record_path.exists() and self._read_record(self._identity())["best_epoch"] is not None

    def check_usable(self, record: Mapping[str, Any]) -> None:
        """Raise UserError if the state or the best weights of a run that has this record are missing or damaged."""
        if record["best_epoch"] is not None:
            with self._advice(train_again=True):
                self._read_whole(self.path / "state.json")

    @contextmanager
    def _advice(self, train_again: bool = False) -> Iterator[None]:
        """Add what to do to an error about a checkpoint; `train_again`: the checkpoint before it cannot be used."""
        self._identity()  # what is wrong with it says what to do
        try:
            yield
        except UserError as error:
            advice = _ADVICE
            if not train_again and (self.path / "state-before.json").exists():
                advice = "repeat the command that trained the run, which uses the checkpoint before"
            raise UserError(f"{error}; {advice}") from None

    def _read_whole(self, state: Path) -> Progress:
        """Progress of a checkpoint, after a look at all of its files that are still needed."""
        progress, files = self._read_state(state)
        for which in files:
            if which == "best" or progress.status == "running":
                self._read_arrays(which, state)
        return progress

    def _read_state(self, path: Path) -> Tuple[Progress, Dict[str, Dict[str, str]]]:
        """Progress, and name and sha256 of the `epoch` and the `best` arrays."""
        identity = self._identity()
        if not path.exists():
            raise UserError(f"{path} is missing")
        content = read_json(path)
        config = recorded_config(identity["config"])
        try:
            check_sealed(content, "state")
            if content["run"] != _fingerprint(identity):
                raise Wrong("it is of another run than config.json")
            check_progress(content["progress"], config)
        except Wrong as wrong:
            raise UserError(f"{path} is damaged: {wrong}") from None
        progress = Progress(**content["progress"])
        if progress.status == "finished" and len(progress.epochs) < config.epochs:
            progress.status = "running"  # it has been given more since then
        return progress, content["files"]

    def load_best_weights(self, model: Block) -> None:
        """Set the model's parameters to those of the best epoch."""
        state = self.path / "state.json"
        if not state.exists() and not self._has_weights:
            ended = self.record_path.exists()
            why = "its training diverged in the first epoch" if ended else "train it first"
            raise UserError(f"{self.path} has no finished epoch: {why}")
        with self._advice():
            set_parameters(model, self._read_arrays("best", state), self.path)

    def restore(self, model: Block, trainer: Trainer, progress: Progress) -> None:
        """Set parameters and optimizer to where the last checkpoint left them."""
        with self._advice():
            arrays = self._read_arrays("epoch", self.path / "state.json")
            set_parameters(model, arrays, self.path)
            set_optimizer(trainer, arrays, progress.updates, self.path)

    def save(self, model: Block, trainer: Trainer, progress: Progress) -> None:
        """Write a checkpoint; `progress` must end with the epoch just trained."""
        # Before what counts: once that says that training has ended, this file is not written again.
        lines = "".join(json.dumps(entry) + "\n" for entry in progress.epochs)
        write_file(self.path / "metrics.jsonl", lines)
        state = self.path / "state.json"
        previous = self._read_state(state)[1] if state.exists() else {}
        files = {"epoch": self._write_weights(f"epoch-{len(progress.epochs):04d}", pack(model, trainer))}
        if progress.best_epoch == len(progress.epochs):
            files["best"] = self._write_weights(self.best_path(progress.best_epoch).stem, pack(model))
        else:
            files["best"] = previous["best"]
        if previous:
            write_json(self.path / "state-before.json", read_json(state))
        self._write_state(files, progress)
        self._remove_weights({entry["name"] for entry in (*files.values(), *previous.values())})

    def _write_weights(self, stem: str, content: bytes) -> Dict[str, str]:
        """Write a file of weights: its name and sha256."""
        path = self.path / f"{stem}.safetensors"
        write_file(path, content)
        return {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}

    def _write_state(self, files: Mapping[str, Mapping[str, str]], progress: Progress) -> None:
        content = {"run": _fingerprint(self._identity()), "files": files, "progress": dataclasses.asdict(progress)}
        state = seal(content)
        check_sealed(state, "state")  # better now than when it is needed
        write_json(self.path / "state.json", state)

    def end(self, progress: Progress) -> None:
        """Note that training has ended without another epoch; where there is none, nothing is left to note it in."""
        state = self.path / "state.json"
        if state.exists():
            self._write_state(self._read_state(state)[1], progress)

    def tidy(self, record: Mapping[str, Any]) -> None:
        """Remove what only a resume needs; the best weights stay, and the last ones of a run that can be extended."""
        kept = [self.best_path(record["best_epoch"]).name]
        if record["status"] == "finished":
            kept.append(f"epoch-{len(record['epochs']):04d}.safetensors")
        self._remove_weights(kept)
        if (self.path / "state-before.json").exists():
            (self.path / "state-before.json").unlink()

    def _remove_weights(self, kept: Collection[str]) -> None:
        """Remove the other files of weights that are ours; whatever else lies here is left alone."""
        for path in self.path.glob("*.safetensors"):
            if WEIGHTS.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def best_path(self, epoch: Optional[int]) -> Path:
        """Where the weights of the best epoch are."""
        return self.path / f"best-{epoch or 0:04d}.safetensors"

    def _read_arrays(self, which: str, state: Path) -> Dict[str, np.ndarray]:
        """The `epoch` or `best` arrays that a checkpoint names, if they are there and whole."""
        file = self._read_state(state)[1][which]
        path = self.path / file["name"]
        if not path.exists():
            raise UserError(f"{path} is missing")
        content = read_regular(path, f"the '{which}' weights of this run")
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise UserError(f"{path} is damaged: its sha256 is not the one in {state.name}")
        try:
            return unpack(content)
        except ValueError as error:  # who made it made its sha256 too
            raise UserError(f"{path} is damaged: {error}") from None


def run_name(config: Config, corpus: Corpus) -> str:
    """A file name for the run, one wherever its text lies and however many epochs it is given."""
    return dataclasses.replace(config, corpus=config.corpus if config.corpus in NAMES else corpus.digest, epochs=1).name


def _lasting(identity: Mapping[str, Any]) -> Dict[str, Any]:
    """What tells runs apart: not the path of one's own text, which has its sha256, nor the epochs, which may grow."""
    config = {name: value for name, value in identity["config"].items() if name != "epochs"}
    if config["corpus"] not in NAMES:
        config["corpus"] = "a text of one's own"
    return {"config": config, "corpus_sha256": identity["corpus_sha256"], "version": identity["version"]}


def _lines_of_words(corpus: Corpus) -> bytes:
    return "".join(f"{name}\n" for name in corpus.vocabulary.idx_to_token).encode()


def _digests(corpus: Corpus) -> Dict[str, str]:
    """What tells texts apart, and the same text with other word types."""
    words = hashlib.sha256(_lines_of_words(corpus)).hexdigest()
    return {"corpus_sha256": corpus.digest, "vocabulary_sha256": words}


def _fingerprint(identity: Mapping[str, Any]) -> str:
    return seal(_lasting(identity))["digest"]
