"""Compare training speed with the limit of the matrix products and with peers: `python -m benchmarks`."""

from __future__ import annotations

import noisin  # noqa: F401  first, so that a broken environment gives one line, not a traceback

# isort: split
import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from benchmarks.measure import Contender, last_line, measure
from benchmarks.ours import METHODS_TIMED
from benchmarks.report import GROWING, HERE, draw, sections
from benchmarks.workloads import GROWTH, WORKLOADS
from noisin.commands.parser import OneLineParser, positive, run_command
from noisin.methods import NONE
from noisin.system.device import processor_features
from noisin.system.errors import UserError, escape_unprintable
from noisin.system.files import write_json
from noisin.system.provenance import cpu_name
from noisin.system.threads import threads

OURS = ("limit", *METHODS_TIMED, "noisin-s4")
PEERS = (  # those that are an extra: library, module, contenders; each with the memory settings below, too
    ("torch", "torch_peers", ("pytorch", "pytorch-noise", "pytorch-compiled")),
    ("jax", "jax_peer", ("jax",)),
)
# The memory settings that the command noisin makes for its own process, as glibc's environment variables.
MEMORY_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_ARENA_MAX": "1"}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return the exit status."""
    return run_command("benchmarks", lambda: _parser().parse_args(argv), _bench)


def _bench(arguments: argparse.Namespace) -> None:
    _check_writable(arguments.out)
    results = _measure_all(arguments)
    write_json(arguments.out / "results.json", results)
    draw(results, arguments.out)
    print("\n\n".join(sections(results)))
    if results["startup_seconds"] is not None:
        print(f"\nFrom the start of the process to the first training step: {results['startup_seconds']:.1f} s")
    print(f"\nWritten to {escape_unprintable(str(arguments.out))}: results.json and figures")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(again="nothing was written")
    parser.add_argument("--rounds", type=positive, default=7, help="turns per contender (default: 7)")
    parser.add_argument(
        "--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="settings (default: both)"
    )
    parser.add_argument("--no-growth", action="store_true", help="skip the cost against size, batch, length and S")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the results (default: benchmarks/)")
    return parser


def _check_writable(folder: Path) -> None:
    """Raise UserError now, not after half an hour, if the results cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # only to see that a file can be made
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None


def _measure_all(arguments: argparse.Namespace) -> Dict[str, Any]:
    measurements: List[Dict[str, Any]] = []
    for workload in arguments.workloads:
        for dtype in _dtypes():
            # One dtype after the other: ratios are taken within a dtype, and fewer processes share the memory.
            found = measure(workload, contenders(dtype), arguments.rounds, f"{workload} {dtype}")
            for needed in ("limit", NONE.name):
                if needed not in [entry["name"] for entry in found]:
                    what = f"{workload}: {needed} in {dtype} could not be timed, see the reason above"
                    raise UserError(f"{what}. Every other row is compared with it, so run the command again")
            measurements += found
    growth: List[Dict[str, Any]] = []
    if not arguments.no_growth:
        for dimension, values in GROWTH.items():
            grown = [
                Contender(name, "float32", "ours", change={dimension: value})
                for name in GROWING[dimension]
                for value in values
            ]
            growth += measure("ptb-rnn-256", grown, 3, f"growth with {dimension}")
    return {
        "hardware": {"cpu": cpu_name(), "threads": threads(), "device": "cpu"},
        "versions": _versions(),
        "measurements": measurements,
        "growth": growth,
        "startup_seconds": _startup_seconds(),
    }


def contenders(dtype: str) -> List[Contender]:
    """Return all contenders of one dtype, 'float32' or 'bfloat16'; those of an extra only if it is installed."""
    chosen = [Contender(name, dtype, "ours") for name in OURS]
    chosen.append(Contender("noisin-2x1", dtype, "ours", made_by="noisin", processes=2))
    chosen += [Contender(name, dtype, "mxnet_peers") for name in ("gluonnlp", "plain-cell")]
    for library, module, names in PEERS:
        if util.find_spec(library) is None:
            print(
                f"{library} is not installed: its rows are left out (CONTRIBUTING.md says how to add it)",
                file=sys.stderr,
            )
            continue
        chosen += [Contender(name, dtype, module) for name in names]
        chosen += [
            Contender(f"{name}-malloc", dtype, module, made_by=name, environment=MEMORY_SETTINGS) for name in names
        ]
    return chosen


def _dtypes() -> List[str]:
    """Return float32, and bfloat16 if the processor has instructions for it."""
    if {"avx512_bf16", "amx_bf16"} & processor_features():
        return ["float32", "bfloat16"]
    print("this processor has no bfloat16 instructions: its rows are left out", file=sys.stderr)
    return ["float32"]


def _versions() -> Dict[str, Optional[str]]:
    found: Dict[str, Optional[str]] = {"python": platform.python_version()}
    for name in ("mxnet", "gluonnlp", "numpy", "torch", "jax", "noisin"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _startup_seconds() -> Optional[float]:
    """Return the seconds from the start of `noisin train` on the Penn Treebank to its first step.

    Without the corpus, return None.
    """
    command = [sys.executable, "-m", "benchmarks.startup"]
    seconds = []
    for _ in range(4):
        start = time.time()
        outcome = subprocess.run(command, capture_output=True, text=True)
        if outcome.returncode:
            print(f"start-up left out: {last_line(outcome.stderr)}", file=sys.stderr)
            return None
        seconds.append(json.loads(outcome.stdout) - start)
    return statistics.median(seconds[1:])  # the first start reads from the disk


if __name__ == "__main__":
    sys.exit(main())
