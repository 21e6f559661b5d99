"""The grid runner: runs what has no record yet, several runs side by side, and goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from tqdm import tqdm

from experiments.grid.engines import Engine
from experiments.records import file_record, find_record, load_records
from noisin.config import Config
from noisin.system.errors import UserError
from noisin.system.files import write_json
from noisin.system.process import Job


def run_grid(
    configs: Sequence[Config],
    runs: Path,
    results: Path,
    engine: Engine,
    threads: int = 1,
    device: str = "auto",
    elsewhere: Sequence[Path] = (),
) -> Tuple[List[Dict[str, Any]], List[str]]:
    """Bring every configuration to a record in `results`.

    Each run is a process of its own, `noisin train`, with its run directory below `runs`.

    Parameters
    ----------
    configs : sequence of Config
    runs, results : Path
        Folder of the run directories; folder of the records.
    engine : Engine
        What runs them, of `experiments.grid.engines`.
    threads : int, default 1
        Of each run.
    device : str, default 'auto'
        As in `noisin.system.device.find_device`.
    elsewhere : sequence of Path
        Further folders of records: a run that has one there is not run again.

    Returns
    -------
    (list of dict, list of str)
        The records in the order of `configs`, and the names of the runs that ended without one; each has said why.
    """
    done = load_records(results, *elsewhere)
    missing = {config.name: config for config in configs if find_record(done, config) is None}
    if len(missing) < len(configs):
        print(f"{len(configs) - len(missing)} of {len(configs)} runs have their record", flush=True)
    failed = set(missing)
    if missing:
        jobs = {name: _job(config, runs, threads, device) for name, config in missing.items()}
        view = _View(missing)
        with view.bar, contextlib.closing(engine(jobs, view.relay)) as ended:
            for name, record in ended:
                view.end(name)
                if record is not None and _filed(results, missing[name], record):
                    failed.remove(name)
    done = load_records(results, *elsewhere)
    records = [record for record in (find_record(done, config) for config in configs) if record is not None]
    return records, sorted(failed)


def _filed(folder: Path, config: Config, record: Dict[str, Any]) -> bool:
    """File a record; says so, and does not, if it is damaged: the other runs go on."""
    try:
        file_record(folder, config, record)
    except UserError as error:
        tqdm.write(str(error))
        return False
    return True


def _job(config: Config, runs: Path, threads: int, device: str) -> Job:
    directory = (runs / config.name).resolve()
    if not (directory / "options.json").exists():  # what it says is in the directory's name
        write_json(directory / "options.json", config.to_dict())
    # Where the corpora are is for this command to say, not for the environment of a worker elsewhere.
    environment = {name: value for name, value in os.environ.items() if name.startswith("NOISIN_")}
    return Job(str(directory), os.getcwd(), device, {**environment, "OMP_NUM_THREADS": str(threads)})


class _View:
    """The whole grid in one bar, its unit a run, which the lines of the runs move on epoch by epoch."""

    def __init__(self, configs: Mapping[str, Config]) -> None:
        self._epochs = {name: config.epochs for name, config in configs.items()}
        self._labels = _labels(configs)
        self._shares = dict.fromkeys(configs, 0.0)  # of each run's epochs, what is done
        self._lock = threading.Lock()
        self.bar = tqdm(
            total=len(configs),
            desc="runs",
            bar_format="{l_bar}{bar}| {n:.1f} of {total} [{elapsed}, at most {remaining} to go]",
            smoothing=0,  # the rate of all runs together since the start
            position=1,  # below the bar of a run that has the terminal
            disable=None,
            leave=False,
        )

    def relay(self, name: str, line: str) -> None:
        """Print a line of a run behind its label."""
        tqdm.write(f"{self._labels[name]}  {line}")
        epoch = re.match(r"(resuming after )?epoch +(\d+)", line)
        if epoch:
            self._move(name, int(epoch[2]) / self._epochs[name], earlier=bool(epoch[1]))

    def end(self, name: str) -> None:
        """Count a run as ended, before its last epoch too."""
        self._move(name, 1.0)

    def _move(self, name: str, share: float, earlier: bool = False) -> None:
        with self._lock:
            step = share - self._shares[name]
            if self.bar.disable or step <= 0:
                return
            self._shares[name] = share
            if earlier:  # done by an earlier command: it says nothing of this one's speed
                self.bar.initial += step
            self.bar.update(step)


def _labels(configs: Mapping[str, Config]) -> Dict[str, str]:
    """What tells the runs apart, as short as it can be."""
    short = {name: f"{config.method:>8} {config.seed}" for name, config in configs.items()}
    return short if len(set(short.values())) == len(short) else {name: name for name in configs}
