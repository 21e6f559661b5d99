"""The provenance of a result: time, commit and processor."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Optional


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def git_revision() -> Optional[str]:
    """Return the package's commit, followed by '+' if tracked files differ from it; None outside a checkout of it."""
    try:
        # If the package is installed below another project's checkout, git would name that project's commit.
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """Return git's output in the folder of this package; raise SubprocessError if git fails."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def cpu_name() -> str:
    """Return the name of the processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # only Linux has that file
    return platform.processor() or platform.machine()
