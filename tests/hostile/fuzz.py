"""A coverage-guided fuzzer of every reader, by the promises that the tests check: `tests/hostile/fuzz.py READER...`.

It needs atheris (`pip install -c constraints.txt atheris`). Options begin with a dash and are libFuzzer's, for each
reader in turn, as `-max_total_time=300` (default: 60 seconds). What it finds is left as `crash-...` in the current
folder; give that file to repeat it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

# What reads for us in Python is watched; MXNet, numpy and the parser of JSON are not.
with atheris.instrument_imports(include=["noisin", "benchmarks", "experiments", "readers"]):
    import noisin  # noqa: F401  (before mxnet)

    # isort: split
    from readers import READERS

# Seconds for one input and MiB for the process, far below both of which a reader must stay; seconds for all inputs.
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-max_total_time=60"]
HERE = "--in-this-process"


def fuzz(name: str, options: list) -> None:
    """Fuzz one reader in this process, from its valid file on, or read the files given; does not return."""
    folder = Path(tempfile.mkdtemp())
    (folder / "valid").write_bytes(READERS[name].valid)
    given = [option for option in options if not option.startswith("-")]
    atheris.Setup([sys.argv[0], *LIMITS, *options, *([] if given else [str(folder)])], READERS[name].accepts)
    atheris.Fuzz()


def main() -> int:
    """One process for each reader that is named, all of them if none is; the first status that is not 0."""
    names = [argument for argument in sys.argv[1:] if argument in READERS]
    options = [argument for argument in sys.argv[1:] if argument not in READERS]
    status = 0
    for name in names or READERS:
        print(f"==> {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="noisin-fuzz-") as folder:  # libFuzzer ends without any cleaning up
            command = [sys.executable, "-W", "ignore", __file__, HERE, name, *options]
            status = subprocess.run(command, env={**os.environ, "TMPDIR": folder}).returncode or status
    return status


if __name__ == "__main__":
    if sys.argv[1:2] == [HERE]:
        fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
