"""How many threads MXNet computes with, which it asks once, while it is imported."""

from __future__ import annotations

import os
import re
import sys
import warnings


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def threads() -> int:
    """Count the threads that MXNet computes with."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // 2))


def set_threads() -> None:
    """Let MXNet use every usable core, unless OMP_NUM_THREADS says otherwise.

    By itself MXNet takes half of the processors it sees, and it looks only once, while it is imported.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given:
        if not re.fullmatch("[1-9][0-9]{0,3}", given):  # of more the process would die without a word
            raise ImportError(f"OMP_NUM_THREADS is '{given}': it must be a whole number from 1 to 9999")
        return
    if "mxnet" in sys.modules:
        warnings.warn(
            "mxnet was imported before noisin, with OMP_NUM_THREADS unset, and so uses half of the cores: "
            "import noisin first, or set OMP_NUM_THREADS",
            RuntimeWarning,
            stacklevel=4,  # set_threads, prepare, noisin/__init__.py, the user's import
        )
        return
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())


def leave_threads_to_the_engine() -> None:
    """Let MXNet copy a large array with one thread, unless the environment says otherwise.

    It would copy with several, in the thread that asks for the copy, as reading a checkpoint does.
    GNU's OpenMP counts those too from then on, more than there are cores, and has the engine's threads sleep at every
    turn instead of waiting awake: a training step on two cores then takes half as long again.
    """
    os.environ.setdefault("MXNET_CPU_PARALLEL_SIZE", str(2**31 - 1))
