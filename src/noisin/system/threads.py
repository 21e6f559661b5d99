"""How many threads MXNet computes with, which it asks once, while it is imported."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, Tuple

# Units of a layer below which one thread is used: a choice between two known points, not a measured threshold. A second
# thread helps at 256 units with 10,000 words, and does not at 64 with a small vocabulary.
SMALL = 128
# How often a waiting thread looks before it sleeps. With GNU's default of 300,000, waiting threads take the cores from
# other processes and from the thread that they wait for. Measured once each way, on two cores, RNN of 256 units, 10,000
# words: a step takes 0.111 s instead of 0.108 s on an idle machine, 0.28 s instead of 0.76 s beside two busy processes.
SPINS = "20000"


_chosen = False


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may really use: those it may run on, and no more than a container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield what the control groups of this process and those above them allow, in cores."""
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
                    continue  # no quota is said there


def idle_cores(stat: Path = Path("/proc/stat"), seconds: float = 0.2) -> int:
    """Count the usable cores that other processes leave idle for so many seconds, one at least."""

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
    except (AttributeError, OSError, ValueError, IndexError):  # not Linux's
        return usable_cores()
    idle = [(after[name][0] - before[name][0]) / max(1, after[name][1] - before[name][1]) for name in before]
    return max(1, min(usable_cores(), round(sum(idle))))


def useful_threads(hidden: int, cores: int) -> int:
    """Count the threads, of so many cores, that make a network with so many units a layer faster."""
    return 1 if hidden < SMALL else cores


def threads() -> int:
    """Count the threads that MXNet computes with."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // 2))


def set_threads() -> None:
    """Let MXNet use every usable core, and its threads wait briefly, unless the environment says otherwise.

    By itself MXNet takes half of the processors it sees, and it looks only once, while it is imported.
    """
    given, most = os.environ.get("OMP_NUM_THREADS"), 4 * (os.cpu_count() or 1)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if given:
        if not re.fullmatch("[1-9][0-9]{0,4}", given) or int(given) > most:  # more bring a machine down
            raise ImportError(f"OMP_NUM_THREADS is '{given}': it must be a whole number from 1 to {most}")
        return
    if "mxnet" in sys.modules:  # which has chosen
        return
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    global _chosen
    _chosen = True


def threads_were_chosen() -> bool:
    """Whether the number of threads is ours, not one that the environment gave."""
    return _chosen


def leave_threads_to_the_engine() -> None:
    """Let MXNet copy a large array with one thread, unless the environment says otherwise.

    It would copy with several, in the thread that asks for the copy, as reading a checkpoint does.
    GNU's OpenMP counts those too from then on, more than there are cores, and has the engine's threads sleep at every
    turn instead of waiting awake: a training step on two cores then takes half as long again.
    """
    os.environ.setdefault("MXNET_CPU_PARALLEL_SIZE", str(2**31 - 1))
