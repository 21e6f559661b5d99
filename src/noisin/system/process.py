"""A run as a process of its own, `noisin train`, that ends when the process that started it ends in any way."""

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
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from noisin.system.errors import UserError
from noisin.system.files import read_json

# Environment variable of a process that `run` starts: the id of the process that it must not outlive.
PARENT = "NOISIN_PARENT"
# Exit status of a training that diverged, whose record is a result too.
DIVERGED = 3
# From Linux's sys/prctl.h.
_PR_SET_PDEATHSIG = 1
# Seconds between two checks whether a run is still wanted, and from the request to stop until a run is killed.
_POLL, _PATIENCE = 0.5, 10.0


@dataclass(frozen=True)
class Job:
    """A run for any machine to train to its end.

    Parameters
    ----------
    directory : str
        Absolute path of the run directory; its `options.json` has the configuration. An earlier try left its checkpoint
        there, so all machines that may get the job must share the folder.
    folder : str
        Working directory, where relative paths (e.g. of a corpus) start.
    device : str
        Device of the machine that gets the job, as in `noisin.system.device.find_device`.
    environment : mapping of str to str
        Environment variables to set, especially OMP_NUM_THREADS.
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
    say : function (str), optional
        Receives each output line of the run. By default, the run writes to the terminal itself, with progress bars.
    unwanted : function () -> bool, default never
        Called every 0.5 s; once it returns True, the run is stopped.

    Returns
    -------
    dict or None
        The record; None if the run was stopped, or failed after an output line that says why.

    Raises
    ------
    OSError
        As from `run_process`.
    """
    if run_process(job, say, unwanted) not in (0, DIVERGED):
        return None
    try:
        return read_json(Path(job.directory) / "record.json")  # the caller checks it
    except UserError as error:
        (say or print)(f"given up: {error}")
        return None


def run_process(
    job: Job,
    say: Optional[Callable[[str], None]] = None,
    unwanted: Callable[[], bool] = lambda: False,
    options: Sequence[str] = (),
) -> Optional[int]:
    """Run `noisin train` for a job and wait until it ends.

    Parameters
    ----------
    job, say, unwanted
        As in `run`.
    options : sequence of str, default none
        Further options of `noisin train`.

    Returns
    -------
    int or None
        The exit status; None if the process was not started.

    Raises
    ------
    OSError
        If `say` raises it, e.g. because the reader of the output is gone; the run is then stopped.
    """
    if unwanted():
        return None
    directory = Path(job.directory)
    if not (directory / "options.json").exists() or not Path(job.folder).is_dir():
        (say or print)(f"{platform.node()} does not see {directory}: runs must be in a folder that all machines share")
        return None
    command = [sys.executable, "-m", "noisin", "train", "--config", str(directory / "options.json")]
    # Another grid may train this run: whoever waits for it finds its record.
    command += ["--run-dir", str(directory), "--device", job.device, "--wait", *options]
    command += ["--quiet"] if say else []
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
            start_new_session=True,  # Ctrl-C goes to the starting process, which prints one line for all runs
        )
    except OSError as error:  # e.g. the environment has been removed meanwhile
        (say or print)(f"given up: cannot start {sys.executable}: {error.strerror}")
        return None
    unsaid: List[OSError] = []
    relay = threading.Thread(target=_relay, args=(process, say, unwanted, unsaid), daemon=True)
    relay.start()
    try:
        status = _wait(process, lambda: bool(unsaid) or unwanted())
    finally:
        process.kill()  # does nothing if it has ended
        process.wait()
    relay.join()
    if unsaid:
        raise unsaid[0]
    if status < 0 and not unwanted():
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        (say or print)(f"given up: ended by signal {-status}, {signal.strsignal(-status)}{hint}")
    return status


def _relay(
    process: subprocess.Popen,
    say: Optional[Callable[[str], None]],
    unwanted: Callable[[], bool],
    unsaid: List[OSError],
) -> None:
    """Pass each output line of the run to `say`; append an error of `say`, e.g. a broken pipe, to `unsaid`."""
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
    """Wait for the run, ending it once it is unwanted, and return its exit status."""
    while not unwanted():
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            pass  # still running: check again whether it is wanted
    process.terminate()  # at any moment, the last checkpoint is intact
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def run_on_worker(job: Job, topic: str) -> Optional[Dict[str, Any]]:
    """Train a run to its end, as `run`, in a task of Dask, whose workers import only this module of ours.

    The run stops when the scheduler has forgotten the task, because the client is gone, or when the worker is closing.

    Parameters
    ----------
    job : Job
    topic : str
        Dask topic under which each output line of the run is logged, as [directory name, line].

    Returns
    -------
    dict or None
        As from `run`.

    Raises
    ------
    distributed.Reschedule
        If the run was stopped; another worker then gets the task.
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
    """Let the kernel kill this process, if `run` started it, as soon as the starting process is gone.

    A killed worker cannot stop its run, which would go on writing beside the process that resumes it elsewhere.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != int(parent):
        sys.exit(1)  # it was gone before
