"""The number of threads that MXNet computes with; MXNet reads it once, while it is imported."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, Tuple

# Threshold in units per layer below which one thread is used: a choice between two known points, not measured. A second
# thread helps at 256 units with 10,000 words, and does not help at 64 units with a small vocabulary.
SMALL = 128
# Number of checks before a waiting thread sleeps. With GNU's default of 300,000, waiting threads take the cores from
# other processes and from the thread that they wait for. RNN of 256 units, 10,000 words, bfloat16, two threads on two
# cores; idle: median over seven interleaved rounds, beside two busy processes: measured once.
#     spins      speed on an idle machine    words a second beside two busy processes
#     300,000    1                           2,030
#     100,000    1.02                        2,650
#     50,000     1.00                        3,350
#     20,000     0.94                        3,800
SPINS = "50000"


_chosen = False


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: those it may run on, up to its container's quota.

    Parameters
    ----------
    root : Path, default '/'
        Folder in which `proc` and `sys` are read.

    Returns
    -------
    int
        At least 1.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of this process's control groups and of the groups above them."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, name in (group for group in groups if len(group) == 3):
        first = "cpu.max" if controllers == "" else "cpu.cfs_quota_us"  # version 2, or 1
        folder = root / "sys/fs/cgroup" / ("" if controllers == "" else "cpu")
        if controllers == "" or "cpu" in controllers.split(","):
            inner = folder / name.strip("/")
            for group in (inner, *inner.parents):
                if group == folder.parent:
                    break
                try:
                    words = (group / first).read_text().split()
                    period = words[1] if controllers == "" else (group / "cpu.cfs_period_us").read_text()
                    if words[0] not in ("max", "-1"):
                        yield int(words[0]) / int(period)
                except (OSError, ValueError, IndexError, ZeroDivisionError):
                    continue  # this group has no quota


def idle_cores(stat: Path = Path("/proc/stat"), seconds: float = 0.2) -> int:
    """Count the usable cores that other processes leave idle.

    Parameters
    ----------
    stat : Path, default '/proc/stat'
    seconds : float, default 0.2
        How long to measure.

    Returns
    -------
    int
        At least 1; all usable cores where Linux's `stat` is missing.
    """

    def idle_ticks() -> Dict[str, Tuple[int, int]]:
        ticks = {}
        for line in stat.read_text().splitlines():
            name, *fields = line.split()
            if name in usable:
                counts = [int(field) for field in fields[:8]]  # user, nice, system, idle, iowait, ...
                ticks[name] = (counts[3] + counts[4], sum(counts))
        return ticks

    try:
        usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        before = idle_ticks()
        time.sleep(seconds)
        after = idle_ticks()
    except (AttributeError, OSError, ValueError, IndexError):  # not Linux
        return usable_cores()
    idle = [(after[name][0] - before[name][0]) / max(1, after[name][1] - before[name][1]) for name in before]
    return max(1, min(usable_cores(), round(sum(idle))))


def useful_threads(hidden: int, cores: int) -> int:
    """Return how many threads to use on `cores` cores for a network with `hidden` units per layer."""
    return 1 if hidden < SMALL else cores


def threads() -> int:
    """Return the number of threads that MXNet computes with."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // 2))


def most_threads() -> int:
    """Return the number of threads above which a run would bring this machine down."""
    return 4 * (os.cpu_count() or 1)


def set_threads() -> None:
    """Let MXNet use every usable core and its threads wait briefly, unless the environment says otherwise.

    By default, MXNet uses half of the processors that it sees.

    Raises
    ------
    ImportError
        If OMP_NUM_THREADS is invalid.
    """
    given, most = os.environ.get("OMP_NUM_THREADS"), most_threads()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if given:
        if not re.fullmatch("[1-9][0-9]{0,4}", given) or int(given) > most:
            raise ImportError(f"OMP_NUM_THREADS is '{given}': it must be a whole number from 1 to {most}")
        return
    if "mxnet" in sys.modules:  # it has already read the number
        return
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    global _chosen
    _chosen = True


def threads_were_chosen() -> bool:
    """Return whether `set_threads` chose the number of threads, not the environment."""
    return _chosen


def leave_threads_to_the_engine() -> None:
    """Let MXNet copy a large array with one thread, unless the environment says otherwise.

    MXNet would copy it (e.g. when a checkpoint is read) with a second team of OpenMP threads. GNU's OpenMP then counts
    more threads than cores and lets the engine's threads sleep instead of busy-waiting, from then on: a training step
    on two cores takes half as long again.
    """
    os.environ.setdefault("MXNET_CPU_PARALLEL_SIZE", str(2**31 - 1))
