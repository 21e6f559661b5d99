"""A process that holds one contender and makes training steps when told: `python -m benchmarks.worker JSON`.

It reads the number of steps from standard input, a line a turn, and answers with one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from typing import Any, Dict

from benchmarks.workloads import WORKLOADS


def main() -> None:
    """Build the contender, then take turns until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is not an answer
    task: Dict[str, Any] = json.loads(sys.argv[1])
    if task["module"] == "ours":
        from noisin.system.startup import keep_freed_memory

        keep_freed_memory()  # as the command noisin does
    module = importlib.import_module(f"benchmarks.{task['module']}")
    step = module.CONTENDERS[task["name"]](WORKLOADS[task["workload"]].changed(task["change"]), task["dtype"])
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        module.finish()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
