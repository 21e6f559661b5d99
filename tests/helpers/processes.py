"""The repository, and processes that wait or run out of disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
# Other than what is given here, a child's environment is this one, without what this test run itself was started with.
ENV = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MAKE", "DMLC_", "PYTHON", "OMP_", "GOMP_", "MXNET_", "MFLAGS"))
    and name not in ("EPOCHS", "METHODS", "SEEDS", "ONLY", "JOBS", "DEVICE", "DTYPE", "ARGS", "PYTEST_ARGS")
}
ENV["PYTHONPATH"] = str(ROOT / "src")


@contextmanager
def file_size_limit(size):
    """The disk is full for every file of this process beyond so many bytes; the error is EFBIG instead of ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def wait_for(condition, seconds=60, process=None):
    """Return once the condition holds; fail if the process has ended or the time is over before that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def run(command, cwd=ROOT, **env):
    """Run a command, by default in the repository's root, with these variables on top of ENV."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**ENV, **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )


def python(code, *options, **env):
    return run([sys.executable, *options, "-c", code], **env)


def stub(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n" + text + "\n", encoding="utf-8")
    file.chmod(0o755)
    return file
