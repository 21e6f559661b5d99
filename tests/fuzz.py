"""A coverage-guided fuzzer of every reader, by the promises that the tests check: `python tests/fuzz.py READER...`.

It needs atheris (`pip install '.[fuzz]'`). Options begin with a dash and are libFuzzer's, for each reader in turn, as
`-max_total_time=300`. What it finds is left as `crash-...` in the current folder; give that file to repeat it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

# What reads for us in Python is watched; MXNet, numpy and the parser of JSON are not.
with atheris.instrument_imports(include=["noisin", "benchmarks", "experiments", "hostile", "tarfile", "zipfile"]):
    from hostile import READERS

# A reader must stay far below both: seconds for one input, MiB for the process.
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]


def fuzz(name: str, options: list) -> None:
    """Fuzz one reader in this process, from its valid file on; does not return."""
    folder = Path(tempfile.mkdtemp(prefix=f"noisin-fuzz-{name}-"))
    (folder / "valid").write_bytes(READERS[name].valid)
    atheris.Setup([sys.argv[0], *LIMITS, *options, str(folder)], READERS[name].accepts)
    atheris.Fuzz()


def main() -> int:
    """One process for each reader that is named, all of them if none is; the first status that is not 0."""
    names = [argument for argument in sys.argv[1:] if argument in READERS]
    options = [argument for argument in sys.argv[1:] if argument not in READERS]
    if len(names) == 1:
        fuzz(names[0], options)
    status = 0
    for name in names or READERS:
        print(f"==> {name}", flush=True)
        status = subprocess.run([sys.executable, "-W", "ignore", __file__, name, *options]).returncode or status
    return status


if __name__ == "__main__":
    sys.exit(main())
