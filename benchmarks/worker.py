"""A process that runs one contender's training steps on request: `python -m benchmarks.worker JSON`.

For each turn it reads a line with the number of steps from standard input, and writes a line with a JSON object of
`seconds` and `peak_mib`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict

from benchmarks.workloads import WORKLOADS


def main() -> None:
    """Build the contender, then take turns until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a library's output is not an answer
    task: Dict[str, Any] = json.loads(sys.argv[1])
    if task["module"] == "ours":
        from noisin.system.startup import keep_freed_memory

        keep_freed_memory()  # as in the command noisin
    module = importlib.import_module(f"benchmarks.{task['module']}")
    step = module.CONTENDERS[task["name"]](WORKLOADS[task["workload"]].changed(task["change"]), task["dtype"])
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        module.finish()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), file=answers, flush=True)


def peak_mib() -> float:
    """Return the most memory that this process has had. `ru_maxrss` is at least its parent's."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
