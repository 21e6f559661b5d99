"""The run directory: configuration, metrics, weights, and all that an exact resume needs. No pickle anywhere.

    config.json        the resolved configuration, package version and corpus fingerprint
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
import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import mxnet as mx
from mxnet.gluon import Block, Trainer

from noisin.config import Config, config_from_dict
from noisin.errors import UserError
from noisin.files import is_locked, open_lock, write_whole


@dataclass
class Progress:
    """Where a run stands after its last whole epoch."""

    epochs: List[Dict[str, Any]] = field(default_factory=list)
    best_epoch: Optional[int] = None
    best_valid_ppl: Optional[float] = None
    updates: int = 0
    started: str = ""
    status: str = "running"
    reason: Optional[str] = None  # why it diverged, if it did


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
    def held(self) -> Iterator[None]:
        """Make the directory and keep every other process from training in it meanwhile.

        Raises
        ------
        UserError
            If it cannot be made or written, or another process trains there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.path / "lock")
        except OSError as error:
            raise UserError(f"cannot make the run directory {self.path}: {error.strerror}") from None
        with lock:
            for torn in self.path.glob(".*.tmp"):
                torn.unlink()  # of a process that was killed while it wrote
            yield

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Start or re-enter the run of this identity (`config`, `corpus_sha256` and `version`).

        Raises
        ------
        UserError
            If the directory holds another run, naming what differs, or cannot be written.
        """
        if not (self.path / "config.json").exists():
            write_json(self.path / "config.json", identity)
            return
        before = read_json(self.path / "config.json")
        differences = _differences(before, json.loads(json.dumps(identity)))
        if differences:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(differences)}): give the same options, or another --run-dir"
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
            If there is none, or it is damaged.
        """
        path = self.path / "config.json"
        if not path.exists():
            raise UserError(f"{self.path} holds no run (it has no config.json): give a directory made by noisin train")
        content = read_json(path)
        if not isinstance(content.get("config"), dict):
            raise UserError(f"{path} is not a run's configuration: it has no 'config' object")
        return config_from_dict(content["config"], source=str(path))

    def load(self) -> Optional[Progress]:
        """Progress at the last checkpoint, or None for a run that has none yet."""
        path = self.path / "state.json"
        return _read_progress(path) if path.exists() else None

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
        """Progress of a checkpoint, after a look at all of its files."""
        progress = _read_progress(state)
        for which in ("last", "best") if progress.best_epoch else ("last",):
            self._find_arrays(which, state)
        return progress

    def load_weights(self, model: Block, which: str = "best") -> None:
        """Set the model's parameters to those of the `best` or the `last` epoch."""
        arrays = self._read_arrays(which)
        _set_parameters(model, arrays, self.path)

    def restore(self, model: Block, trainer: Trainer, progress: Progress) -> None:
        """Set parameters and optimizer to where the last checkpoint left them."""
        arrays = self._read_arrays("last")
        _set_parameters(model, arrays, self.path)
        _set_optimizer(trainer, arrays, progress.updates)

    def save(self, model: Block, trainer: Trainer, progress: Progress) -> None:
        """Write a checkpoint; `progress` must end with the epoch just trained."""
        epoch = len(progress.epochs)
        last, best = self.path / f"epoch-{epoch:04d}.params", self.path / f"best-{progress.best_epoch or 0:04d}.params"
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
        lines = "".join(json.dumps(entry) + "\n" for entry in progress.epochs)
        write_file(self.path / "metrics.jsonl", lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        for old in self.path.glob("*.params"):
            if old.name not in kept:
                old.unlink()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record and drop what only a resume would need."""
        write_json(self.record_path, record)
        state = self.path / "state.json"
        files = read_json(state)["files"] if state.exists() else {}  # none where not one epoch ended
        if (self.path / "state-before.json").exists():
            (self.path / "state-before.json").unlink()
        for old in self.path.glob("*.params"):
            if old.name != files.get("best", {}).get("name"):
                old.unlink()

    def _read_arrays(self, which: str) -> Dict[str, mx.nd.NDArray]:
        return mx.nd.load(str(self._find_arrays(which, self.path / "state.json")))

    def _find_arrays(self, which: str, state: Path) -> Path:
        """The file of the `last` or `best` arrays that a checkpoint names, if it is there and whole."""
        if not state.exists():
            raise UserError(f"{self.path} has no finished epoch yet: train it first")
        try:
            entry = read_json(state)["files"][which]
            name, digest = Path(entry["name"]).name, entry["sha256"]
        except (KeyError, TypeError):
            raise UserError(f"{state} names no '{which}' weights") from None
        arrays = self.path / name
        if not arrays.exists():
            raise UserError(f"{arrays} is missing: it holds the '{which}' weights of this run")
        if _sha256(arrays) != digest:
            raise UserError(f"{arrays} is damaged: its sha256 is not the one in {state.name}")
        return arrays


def _read_progress(state: Path) -> Progress:
    if not state.exists():
        raise UserError(f"{state} is missing")
    try:
        return Progress(**read_json(state)["progress"])
    except (KeyError, TypeError):
        raise UserError(f"{state} is damaged: delete {state.parent} to start the run again") from None


def _differences(before: Any, now: Any, name: str = "") -> List[str]:
    """What differs between two JSON values, as `name: was 1, is 2`."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(set(before) | set(now)):
            found += _differences(before.get(key), now.get(key), key)
        return found
    return [] if before == now else [f"{name} was {json.dumps(before)}, is {json.dumps(now)}"]


def _set_parameters(model: Block, arrays: Mapping[str, mx.nd.NDArray], where: Path) -> None:
    for name, parameter in model._collect_params_with_prefix().items():
        value = arrays.get(f"weight:{name}")
        if value is None or value.shape != parameter.shape:
            found = "missing" if value is None else f"of shape {value.shape}"
            raise UserError(f"{where}: {name} is {found}, the model has {parameter.shape}")
        parameter.set_data(value)


def _optimizer_arrays(trainer: Trainer) -> Dict[str, mx.nd.NDArray]:
    """The optimizer's state as named arrays, instead of `Trainer.save_states`, which pickles."""
    arrays = {}
    for index, state in trainer._updaters[0].states.items():
        values = state if isinstance(state, (tuple, list)) else [state]
        for place, value in enumerate(values):
            if value is not None:  # plain SGD has no state
                arrays[f"optimizer:{index}:{place}"] = value
    return arrays


def _set_optimizer(trainer: Trainer, arrays: Mapping[str, mx.nd.NDArray], updates: int) -> None:
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    for index, parameter in enumerate(trainer._params):
        if parameter.grad_req == "null":
            continue
        state = optimizer.create_state_multi_precision(index, parameter.data())
        for place, value in enumerate(state if isinstance(state, (tuple, list)) else [state]):
            if value is not None:
                value[:] = arrays[f"optimizer:{index}:{place}"]
        updater.states[index] = state
        updater.states_synced[index] = True
        optimizer._index_update_count[index] = updates
    optimizer.num_update = updates


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """As `write_whole`, with a UserError that names the file where it cannot be written."""
    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    except mx.MXNetError:  # from mx.nd.save, which does not say why
        raise UserError(f"cannot write {path}: is the disk full, or the folder read-only?") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename; a value that JSON cannot hold (NaN) is an error of ours."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    UserError
        If it cannot be read or is not an object.
    """
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition, parse_constant=_refuse_constant
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged: it is not JSON") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return content


def _without_repetition(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """An object, whose names must differ: of two values, different readers would take different ones."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _write_arrays(path: Path, arrays: Dict[str, mx.nd.NDArray]) -> str:
    digest = []

    def write(temporary: Path) -> None:
        mx.nd.save(str(temporary), arrays)
        digest.append(_sha256(temporary))

    write_file(path, write)
    return digest[0]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for chunk in iter(lambda: handle.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
