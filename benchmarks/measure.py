"""Timing of contenders: one process each, interleaved turns, medians over rounds."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Sequence

from tqdm import tqdm

from benchmarks.workloads import WORKLOADS
from noisin.system.threads import threads

WARM_UP_STEPS = 3
TURN_SECONDS = 1.5


@dataclass(frozen=True)
class Contender:
    """A training step to time.

    Parameters
    ----------
    name : str
        Name in the results.
    dtype : {'float32', 'bfloat16'}
    module : str
        Module of this package whose `CONTENDERS` has it.
    made_by : str, default `name`
        Its key in `CONTENDERS`.
    change : dict of str to int, default none
        Numbers of the workload to replace.
    processes : int, default 1
        Copies that run side by side and share the threads; their rates are added up.
    environment : dict of str to str, default none
        Additional environment variables of its processes.
    """

    name: str
    dtype: str
    module: str
    made_by: str = ""
    change: Dict[str, int] = field(default_factory=dict)
    processes: int = 1
    environment: Dict[str, str] = field(default_factory=dict)


class _Process:
    """A process of `worker.py`, as seen from this side."""

    def __init__(self, contender: Contender, workload: str) -> None:
        task = {
            "module": contender.module,
            "name": contender.made_by or contender.name,
            "dtype": contender.dtype,
            "workload": workload,
            "change": contender.change,
        }
        share = str(max(1, threads() // contender.processes))
        # Peers run as their users run them, without what `import noisin` has set here. Our workers set it again.
        inherited = {name: value for name, value in os.environ.items() if name != "MXNET_CPU_PARALLEL_SIZE"}
        environment = {**inherited, "OMP_NUM_THREADS": share, **contender.environment}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", json.dumps(task)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self, steps: int) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; `answer` reports why

    def answer(self) -> Dict[str, float]:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            raise ContenderFailed(last_line(self._process.stderr.read()))
        return json.loads(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class ContenderFailed(Exception):
    """A contender's process ended; the message is the last line that it printed."""


def last_line(said: str) -> str:
    """Return the last line that a process printed before it ended."""
    return (said.strip().splitlines() or ["it was killed"])[-1]


class _Turns:
    """A contender's processes and their measurements."""

    def __init__(self, contender: Contender, workload: str) -> None:
        self.contender = contender
        self._words = WORKLOADS[workload].changed(contender.change).words
        self._processes = [_Process(contender, workload) for _ in range(contender.processes)]
        self.rates: List[float] = []
        self.peak_mib = 0.0
        self.warm_up_seconds = 0.0
        self._steps = 0

    def warm_up(self) -> None:
        self.warm_up_seconds = self._turn(WARM_UP_STEPS)  # in which a compiler compiles
        self._steps = max(2, round(TURN_SECONDS / max(1e-3, self._turn(2) / 2)))

    def _turn(self, steps: int) -> float:
        for process in self._processes:
            process.start(steps)
        answers = [process.answer() for process in self._processes]
        self.peak_mib = sum(answer["peak_mib"] for answer in answers)
        return max(answer["seconds"] for answer in answers)

    def round(self) -> None:
        seconds = self._turn(self._steps)
        self.rates.append(len(self._processes) * self._steps * self._words / seconds)

    def stop(self) -> None:
        for process in self._processes:
            process.stop()


def measure(workload: str, contenders: Sequence[Contender], rounds: int, title: str = "") -> List[Dict[str, Any]]:
    """Time contenders on a workload, each round in another order, so that changes of the machine affect all alike.

    Parameters
    ----------
    workload : str
        Key of `WORKLOADS`.
    contenders : sequence of Contender
    rounds : int
        Turns per contender, after its warm-up.
    title : str, default `workload`
        Title of the progress bar.

    Returns
    -------
    list of dict
        One measurement per contender (docs/formats.md), with the `rates` (words per second) of each round, in order.
        A contender that fails is left out, with a line on standard error that says why.
    """
    turns: List[_Turns] = []

    def go_on(turn: _Turns, act: Callable[[], None]) -> None:
        try:
            act()
        except ContenderFailed as reason:
            turns.remove(turn)
            turn.stop()
            what = f"{workload}: {turn.contender.name} in {turn.contender.dtype}"
            tqdm.write(f"{what} left out: {reason}", file=sys.stderr)
        bar.update()

    try:
        with tqdm(total=len(contenders) * (rounds + 1), desc=title or workload, leave=False, disable=None) as bar:
            for contender in contenders:
                turn = _Turns(contender, workload)
                turns.append(turn)
                go_on(turn, turn.warm_up)
            order = random.Random(0)
            for _ in range(rounds):
                for turn in order.sample(turns, len(turns)):
                    go_on(turn, turn.round)
        return [_measurement(turn, workload) for turn in turns]
    finally:
        for turn in turns:
            turn.stop()


def _measurement(turn: _Turns, workload: str) -> Dict[str, Any]:
    return {
        "workload": workload,
        "name": turn.contender.name,
        "dtype": turn.contender.dtype,
        "words_per_second": statistics.median(turn.rates),
        "min": min(turn.rates),
        "max": max(turn.rates),
        "rounds": len(turn.rates),
        "rates": turn.rates,
        "peak_mib": turn.peak_mib,
        "warm_up_seconds": turn.warm_up_seconds,
        **turn.contender.change,
    }
