"""The run directory: configuration, metrics, weights, and all that an exact resume needs. No pickle anywhere.

    config.json        the resolved configuration, package version and corpus fingerprint
    vocabulary.txt     the word types, one a line by id: all that sampling needs of the corpus
    state.json         progress so far; names the two files below with their sha256
    state-before.json  the same of the checkpoint before, whose files are kept too
    epoch-0007.params  weights and optimizer state after epoch 7
    best-0005.params   weights of the best validation epoch
    metrics.jsonl      one line an epoch, for people and plots
    record.json        the finished run (DESIGN, section 7)
    lock               held by the process that trains
    events/            for TensorBoard, if asked for

Every file is written to the side, flushed and renamed. `state.json` is what counts: a kill before its rename leaves the
previous one, whose files are still there. Should it or its files be damaged later, the checkpoint before is used.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import mxnet as mx
import numpy as np
from mxnet.gluon import Block, Trainer

from noisin.config import Config, recorded_config
from noisin.data.encoding import END, UNKNOWN
from noisin.runs.weights import parse_arrays
from noisin.system.errors import UserError, quoted
from noisin.system.files import BRIEF, hold_folder, is_locked, read_json, read_regular, write_file, write_json

WEIGHTS = re.compile(r"(epoch|best)-\d{4,9}\.params")  # names of the files of weights
STATUSES = ("running", "finished", "early-stopped", "diverged")


@dataclass
class Progress:
    """Where a run stands after its last whole epoch."""

    epochs: List[Dict[str, Any]] = field(default_factory=list)
    best_epoch: Optional[int] = None
    best_valid_ppl: Optional[float] = None
    updates: int = 0
    exploding: int = 0  # batches in a row, up to the last one, whose loss has exploded
    started: str = ""
    status: str = "running"
    reason: Optional[str] = None  # why it diverged, if it did
    revisions: List[str] = field(default_factory=list)  # the commits of the code that trained it, first one first


class RunDirectory:
    """A directory that holds one run.

    Parameters
    ----------
    path : str or Path
        Created by `begin` if it is not there.
    """

    def __init__(self, path: Any) -> None:
        self.path = Path(path)

    @property
    def record_path(self) -> Path:
        return self.path / "record.json"

    @contextmanager
    def held(self, patience: float = BRIEF) -> Iterator[None]:
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
            raise UserError(f"run directory {self.path}: MXNet takes names in UTF-8 alone; give another one") from None
        try:
            lock = hold_folder(self.path, patience)
        except OSError as error:
            raise UserError(f"cannot make the run directory {self.path}: {error.strerror or error}") from None
        with lock:
            yield

    def begin(self, identity: Mapping[str, Any], types: Sequence[str]) -> None:
        """Start or re-enter the run of this identity (`config`, `corpus_sha256` and `version`) and vocabulary.

        Raises
        ------
        UserError
            If the directory holds another run, naming what differs, or one that cannot be told, or cannot be written.
        """
        if not (self.path / "config.json").exists():
            left = [name for name in ("record.json", "state.json", "state-before.json") if (self.path / name).exists()]
            if left:
                raise UserError(
                    f"{self.path} has a {left[0]} but no config.json to say of which run: give another --run-dir"
                )
            write_json(self.path / "config.json", identity)
        before = read_json(self.path / "config.json")
        differences = _differences(before, json.loads(json.dumps(identity)))
        if differences:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(differences)}): give it the same options, text and version "
                "of noisin, or give another --run-dir"
            )
        lines, path = "".join(f"{name}\n" for name in types).encode(), self.path / "vocabulary.txt"
        if not path.exists() or read_regular(path, "the vocabulary of this run") != lines:
            write_file(path, lambda aside: aside.write_bytes(lines))

    @property
    def in_use(self) -> bool:
        """Whether a process trains here now."""
        return is_locked(self.path / "lock")

    def read_config(self) -> Config:
        """The configuration of the run that lies here.

        Raises
        ------
        UserError
            If there is none, or it is damaged.
        """
        path = self.path / "config.json"
        if not path.exists():
            raise UserError(f"{self.path} holds no run (it has no config.json): give a directory made by noisin train")
        content = read_json(path)
        if not isinstance(content.get("config"), dict):
            raise UserError(f"{path} is not a run's configuration: it has no 'config' object")
        return recorded_config(content["config"], source=str(path))

    def read_vocabulary(self) -> List[str]:
        """The word types of the run that lies here, by id.

        Raises
        ------
        UserError
            If the file is missing or damaged.
        """
        path = self.path / "vocabulary.txt"
        if not path.exists():
            raise UserError(f"{path} is missing: repeat the command that trained the run, which writes it")
        try:
            *types, rest = read_regular(path, "word types").decode("utf-8").split("\n")
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

    def load(self) -> Optional[Progress]:
        """Progress at the last checkpoint, or None for a run that has none yet."""
        path = self.path / "state.json"
        return _read_state(path)[0] if path.exists() else None

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
        if not newest.exists() and not before.exists():
            return None
        try:
            return self._read_whole(newest)
        except UserError as damage:
            if not before.exists():
                raise
            progress = self._read_whole(before)
            report(f"{damage}; the checkpoint before it is used")
        write_json(newest, read_json(before))
        return progress

    def _read_whole(self, state: Path) -> Progress:
        """Progress of a checkpoint, after a look at all of its files that are still needed."""
        progress, files = _read_state(state)
        for which in files:
            if which == "best" or progress.status == "running":
                self._read_arrays(which, state)
        return progress

    def load_best_weights(self, model: Block) -> None:
        """Set the model's parameters to those of the best epoch."""
        _set_parameters(model, self._read_arrays("best", self.path / "state.json"), self.path)

    def restore(self, model: Block, trainer: Trainer, progress: Progress) -> None:
        """Set parameters and optimizer to where the last checkpoint left them."""
        arrays = self._read_arrays("last", self.path / "state.json")
        _set_parameters(model, arrays, self.path)
        _set_optimizer(trainer, arrays, progress.updates, self.path)

    def save(self, model: Block, trainer: Trainer, progress: Progress) -> None:
        """Write a checkpoint; `progress` must end with the epoch just trained."""
        epoch = len(progress.epochs)
        # Before what counts: once that says that training has ended, this file is not written again.
        lines = "".join(json.dumps(entry) + "\n" for entry in progress.epochs)
        write_file(self.path / "metrics.jsonl", lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        last, best = self.path / f"epoch-{epoch:04d}.params", self.best_path(progress.best_epoch)
        weights = {f"weight:{name}": value.data() for name, value in model._collect_params_with_prefix().items()}
        digests = {"last": _write_arrays(last, {**weights, **_optimizer_arrays(trainer)})}
        if progress.best_epoch == epoch:
            digests["best"] = _write_arrays(best, weights)
        elif progress.best_epoch is not None:
            digests["best"] = read_json(self.path / "state.json")["files"]["best"]["sha256"]
        files = {"last": {"name": last.name, "sha256": digests["last"]}}
        if progress.best_epoch is not None:
            files["best"] = {"name": best.name, "sha256": digests["best"]}
        state, before = self.path / "state.json", self.path / "state-before.json"
        kept = {entry["name"] for entry in files.values()}
        if state.exists():
            previous = read_json(state)
            kept |= {entry["name"] for entry in previous["files"].values()}
            write_json(before, previous)
        write_json(state, {"files": files, "progress": dataclasses.asdict(progress)})
        for old in self._weights():
            if old.name not in kept:
                old.unlink()

    def end(self, progress: Progress) -> None:
        """Note that training has ended without another epoch; where there is none, nothing is left to note it in."""
        state = self.path / "state.json"
        if state.exists():
            write_json(state, {**read_json(state), "progress": dataclasses.asdict(progress)})

    def drop_checkpoints(self, best_epoch: Optional[int]) -> None:
        """Remove what only a resume needs; the weights of the best epoch stay."""
        for old in [*self._weights(), *self.path.glob("state-before.json")]:
            if old != self.best_path(best_epoch):
                old.unlink()

    def _weights(self) -> List[Path]:
        """The files of weights that are ours; whatever else lies here is left alone."""
        return [path for path in self.path.glob("*.params") if WEIGHTS.fullmatch(path.name)]

    def best_path(self, epoch: Optional[int]) -> Path:
        """Where the weights of the best epoch are."""
        return self.path / f"best-{epoch or 0:04d}.params"

    def _read_arrays(self, which: str, state: Path) -> Dict[str, np.ndarray]:
        """The `last` or `best` arrays that a checkpoint names, if they are there and whole."""
        if not state.exists():
            raise UserError(f"{self.path} has no finished epoch yet: train it first")
        _, files = _read_state(state)
        if which not in files:
            raise UserError(f"{state} names no '{which}' weights")
        path = self.path / files[which]["name"]
        content = read_regular(path, f"the '{which}' weights of this run")
        if hashlib.sha256(content).hexdigest() != files[which]["sha256"]:
            raise UserError(f"{path} is damaged: its sha256 is not the one in {state.name}")
        try:
            return parse_arrays(content)
        except ValueError as error:  # who made it made its sha256 too
            raise UserError(f"{path} is damaged: {error}") from None


def _read_state(path: Path) -> Tuple[Progress, Dict[str, Dict[str, str]]]:
    """Progress, and name and sha256 of the `last` and, if there is one, the `best` arrays."""
    content = read_json(path)
    try:
        progress, files = Progress(**content["progress"]), content["files"]
        if _is_progress(progress) and _are_files(files, {"last", "best"} if progress.best_epoch else {"last"}):
            return progress, files
    except (KeyError, TypeError, AttributeError):
        pass  # it lacks something, or has another type in its place: the same as a wrong value
    raise UserError(f"{path} is damaged: delete {path.parent} to start the run again")


def _is_progress(progress: Progress) -> bool:
    epochs, best = progress.epochs, progress.best_epoch
    return (
        isinstance(epochs, list)
        and all(_is_epoch(entry, number) for number, entry in enumerate(epochs, 1))
        and ((best is None) == (progress.best_valid_ppl is None))
        and (best is None or (type(best) is int and 1 <= best <= len(epochs) and _is_number(progress.best_valid_ppl)))
        and type(progress.updates) is int
        and 0 <= progress.updates < 2**53
        and type(progress.exploding) is int
        and progress.exploding >= 0
        and isinstance(progress.started, str)
        and progress.status in STATUSES
        and (progress.reason is None or isinstance(progress.reason, str))
        and isinstance(progress.revisions, list)
        and all(isinstance(revision, str) for revision in progress.revisions)
    )


def _is_epoch(entry: Dict[str, Any], number: int) -> bool:
    names = ("train_ppl", "valid_ppl", "seconds", "tokens_per_second")
    return (
        type(entry["epoch"]) is int
        and entry["epoch"] == number
        and all(_is_number(entry[name]) for name in names)
        and isinstance(entry["gamma"], list)
        and all(_is_number(gamma) for gamma in entry["gamma"])
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _are_files(files: Dict[str, Dict[str, str]], expected: Set[str]) -> bool:
    return set(files) == expected and all(
        WEIGHTS.fullmatch(entry["name"]) and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) for entry in files.values()
    )


def _differences(before: Any, now: Any, name: str = "") -> List[str]:
    """What differs between two JSON values, as `name: was 1, is 2`."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(set(before) | set(now)):
            found += _differences(before.get(key), now.get(key), key)
        return found
    return [] if before == now else [f"{name} was {quoted(before)}, is {quoted(now)}"]


def _set_parameters(model: Block, arrays: Mapping[str, np.ndarray], where: Path) -> None:
    for name, parameter in model._collect_params_with_prefix().items():
        parameter.set_data(_array(arrays, f"weight:{name}", parameter.shape, where))


def _array(arrays: Mapping[str, np.ndarray], name: str, shape: Tuple[int, ...], where: Path) -> mx.nd.NDArray:
    """The array of this name, if it has the shape that the model needs: another one MXNet might broadcast to it."""
    value = arrays.get(name)
    if value is None or value.shape != shape:
        found = "missing" if value is None else f"of shape {value.shape}"
        raise UserError(f"{where}: {name} is {found}, the model has {shape}")
    return mx.nd.array(value)


def _optimizer_arrays(trainer: Trainer) -> Dict[str, mx.nd.NDArray]:
    """The optimizer's state as named arrays, instead of `Trainer.save_states`, which pickles."""
    arrays = {}
    for index, state in trainer._updaters[0].states.items():
        values = state if isinstance(state, (tuple, list)) else [state]
        for place, value in enumerate(values):
            if value is not None:  # plain SGD has no state
                arrays[f"optimizer:{index}:{place}"] = value
    return arrays


def _set_optimizer(trainer: Trainer, arrays: Mapping[str, np.ndarray], updates: int, where: Path) -> None:
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    for index, parameter in enumerate(trainer._params):
        if parameter.grad_req == "null":
            continue
        state = optimizer.create_state_multi_precision(index, parameter.data())
        for place, value in enumerate(state if isinstance(state, (tuple, list)) else [state]):
            if value is not None:
                value[:] = _array(arrays, f"optimizer:{index}:{place}", value.shape, where)
        updater.states[index] = state
        updater.states_synced[index] = True
        optimizer._set_current_context(parameter.data().context.device_id)  # each device has counts of its own
        optimizer._index_update_count[index] = updates
    optimizer.num_update = updates


def _write_arrays(path: Path, arrays: Dict[str, mx.nd.NDArray]) -> str:
    digest = []

    def write(temporary: Path) -> None:
        try:
            mx.nd.save(str(temporary), arrays)
            mx.nd.load(str(temporary))  # on a full disk `save` does not notice that its last few kilobytes are missing
        except mx.MXNetError:  # it does not say why
            raise OSError(errno.EIO, "is the disk full, or the folder read-only?") from None
        digest.append(_sha256(temporary))

    write_file(path, write)
    return digest[0]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for chunk in iter(lambda: handle.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
