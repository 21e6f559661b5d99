"""The grid runner: runs what has no record yet, several runs side by side, and goes on where it was interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tqdm import tqdm

from experiments.records import file_record, find_record, load_records
from noisin._environment import threads
from noisin.checkpoint import read_json, write_json
from noisin.config import Config


class RunsFailed(Exception):
    """Some runs ended without a record; each has said why."""


def run_grid(
    configs: Sequence[Config],
    runs: Path,
    results: Path,
    jobs: int = 1,
    device: str = "auto",
    elsewhere: Sequence[Path] = (),
) -> List[Dict[str, Any]]:
    """Bring every configuration to a record in `results`, and return the records in the order of `configs`.

    Each run is a process of its own, `noisin train`, with its run directory below `runs`.

    Parameters
    ----------
    configs : sequence of Config
    runs, results : Path
        Folder of the run directories; folder of the records.
    jobs : int, default 1
        Runs side by side; they share the cores.
    device : str, default 'auto'
        As in `noisin.device.find_device`.
    elsewhere : sequence of Path
        Further folders of records: a run that has one there is not run again.

    Raises
    ------
    RunsFailed
        If a run ends without a record; the others are finished first.
    """
    done = load_records(results, *elsewhere)
    missing = [config for config in configs if find_record(done, config) is None]
    if len(missing) < len(configs):
        print(f"{len(configs) - len(missing)} of {len(configs)} runs have their record", flush=True)
    processes = _Processes(runs, results, jobs, device)
    failed = []
    bar = tqdm(total=len(missing), desc="runs", unit="run", position=1 if jobs == 1 else 0, disable=None, leave=False)
    with bar, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(processes.run, config): config for config in missing}
        try:
            for future, config in futures.items():
                if not future.result():
                    failed.append(config.name)
                bar.update()
        except KeyboardInterrupt:
            processes.stop()
            raise
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")
    done = load_records(results, *elsewhere)
    return [record for record in (find_record(done, config) for config in configs) if record is not None]


class _Processes:
    """Starts runs as processes, relays what they say, and stops them together."""

    def __init__(self, runs: Path, results: Path, jobs: int, device: str) -> None:
        self._runs, self._results, self._jobs, self._device = runs, results, jobs, device
        self._stopping = threading.Event()
        self._environment = dict(os.environ)
        if jobs > 1:
            # Cores are shared out: two runs of one thread make more words a second than two of two.
            self._environment["OMP_NUM_THREADS"] = str(max(1, threads() // jobs))

    def run(self, config: Config) -> bool:
        """Run one configuration to its end; whether it has left a record."""
        if self._stopping.is_set():
            return False
        directory = self._runs / config.name
        directory.mkdir(parents=True, exist_ok=True)
        options = directory / "options.json"
        write_json(options, config.to_dict())
        command = [sys.executable, "-m", "noisin", "train", "--config", str(options), "--run-dir", str(directory)]
        command += ["--device", self._device]
        if self._jobs == 1:
            # The run has the terminal: its lines and its progress bar are its own.
            print(f"\n{config.name}", flush=True)
            status = subprocess.call(command, env=self._environment)
        else:
            status = self._relay(config, command + ["--quiet"])
        if status != 0:
            return False
        file_record(self._results, config, read_json(directory / "record.json"))
        return True

    def _relay(self, config: Config, command: Sequence[str]) -> int:
        """Print each line of the run behind its name."""
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            tqdm.write(f"{config.method:>8} {config.seed}  {line.rstrip()}")
        return process.wait()

    def stop(self) -> None:
        """Start no more runs; those at work get the interruption from the terminal and end by themselves."""
        self._stopping.set()
