"""One run as a process of its own, `noisin train`, that ends when whoever started it ends, however that may be."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

from noisin.system.errors import UserError
from noisin.system.files import read_json

# Set for a process that `run` starts: the process that it must not outlive.
PARENT = "NOISIN_PARENT"
# Exit status of a training that diverged, whose record is a result too.
DIVERGED = 3
# From Linux's sys/prctl.h.
_PR_SET_PDEATHSIG = 1
# Seconds between two looks at whether a run is still wanted, and until one that is stopped is killed.
_POLL, _PATIENCE = 0.5, 10.0


@dataclass(frozen=True)
class Job:
    """What a machine has to know to bring a run to its record.

    Parameters
    ----------
    directory : str
        The run directory, absolute; its `options.json` says what to train. It is also where an earlier try has left its
        checkpoint, so all machines that may get the job must see the same.
    folder : str
        Where to work: relative paths, as that of a corpus, start here.
    device : str
        As in `noisin.system.device.find_device`, of the machine that gets the job.
    environment : mapping
        Variables to set, OMP_NUM_THREADS above all.
    """

    directory: str
    folder: str
    device: str
    environment: Mapping[str, str]


def run(
    job: Job, say: Optional[Callable[[str], None]] = None, unwanted: Callable[[], bool] = lambda: False
) -> Optional[Dict[str, Any]]:
    """Train a run to its end, from its last checkpoint if it has one.

    Parameters
    ----------
    job : Job
    say : callable, optional
        Receives each line of the run. Without it the run has the terminal: its lines and progress bars are its own.
    unwanted : callable
        Asked now and then; once it says True, the run is stopped.

    Returns
    -------
    dict or None
        The record; None if the run has failed, and said why, or was stopped.

    Raises
    ------
    OSError
        If a line cannot be said, as where the reader of the output has gone; the run is then stopped.
    """
    if unwanted():
        return None
    directory = Path(job.directory)
    if not (directory / "options.json").exists() or not Path(job.folder).is_dir():
        (say or print)(f"{platform.node()} does not see {directory}: runs must be in a folder that all machines share")
        return None
    command = [sys.executable, "-m", "noisin", "train", "--config", str(directory / "options.json")]
    # Another grid may train this run: whoever waits for it finds its record.
    command += ["--run-dir", str(directory), "--device", job.device, "--wait"] + (["--quiet"] if say else [])
    if say is None:
        print(f"\n{directory.name}", flush=True)
    try:
        process = subprocess.Popen(
            command,
            cwd=job.folder,
            env={**os.environ, **job.environment, PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if say else None,
            stderr=subprocess.STDOUT if say else None,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the one that started it, who says one line for all runs
        )
    except OSError as error:  # as when the environment has been removed meanwhile
        (say or print)(f"given up: cannot start {sys.executable}: {error.strerror}")
        return None
    unsaid: List[OSError] = []
    relay = threading.Thread(target=_relay, args=(process, say, unwanted, unsaid), daemon=True)
    relay.start()
    try:
        status = _wait(process, lambda: bool(unsaid) or unwanted())
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
    relay.join()
    if unsaid:
        raise unsaid[0]
    if status < 0 and not unwanted():
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        (say or print)(f"given up: ended by signal {-status}, {signal.strsignal(-status)}{hint}")
    if status not in (0, DIVERGED):
        return None
    try:
        return read_json(directory / "record.json")  # whoever gets it checks it
    except UserError as error:
        (say or print)(f"given up: {error}")
        return None


def _relay(
    process: subprocess.Popen,
    say: Optional[Callable[[str], None]],
    unwanted: Callable[[], bool],
    unsaid: List[OSError],
) -> None:
    """Say every line of the run; what keeps it from being said, as a pipe that nobody reads, is left in `unsaid`."""
    if say is None or process.stdout is None:
        return
    with process.stdout:
        for line in process.stdout:
            if not unsaid and not unwanted():
                try:
                    say(line.rstrip())
                except OSError as error:
                    unsaid.append(error)


def _wait(process: subprocess.Popen, unwanted: Callable[[], bool]) -> int:
    """The exit status of the run, which is ended if it is no longer wanted."""
    while not unwanted():
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            pass  # still at work: ask again whether it is wanted
    process.terminate()  # whenever it comes, the last checkpoint is whole
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def run_on_worker(job: Job, topic: str) -> Optional[Dict[str, Any]]:
    """Do the same as a task of Dask, whose workers import this module, and nothing else of ours, for it.

    Each line of the run is an event of `topic`. The run stops when the scheduler has forgotten the task, because the
    client is gone, or when the worker is being closed: then another one gets the task.
    """
    from distributed import Reschedule, get_worker
    from distributed.core import Status

    worker = get_worker()
    key = worker.get_current_task()

    def unwanted() -> bool:
        task = worker.state.tasks.get(key)
        working = worker.status in (Status.running, Status.paused)
        return not working or task is None or task.state != "executing"

    record = run(job, lambda line: worker.log_event(topic, [Path(job.directory).name, line]), unwanted)
    if record is None and unwanted():
        raise Reschedule
    return record


def end_with_parent() -> None:
    """Let the kernel kill this process as soon as the one that started it is gone, if `run` did.

    A worker that is killed cannot stop its run, which would go on writing beside the one that resumes it elsewhere.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != int(parent):
        sys.exit(1)  # it was gone before
