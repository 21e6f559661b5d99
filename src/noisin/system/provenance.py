"""Where a result comes from: when, which code, which processor."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Optional


def now() -> str:
    """The time, for records: ISO 8601, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def git_revision() -> Optional[str]:
    """The commit of this package, with '+' where its tracked files differ from it; None outside a checkout of it."""
    try:
        # Installed below another project's checkout, it is that project whose commit git would say.
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """What git says of the folder of this package; raises SubprocessError where it fails."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def cpu_name() -> str:
    """The processor's model, for records."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # only Linux has that file
    return platform.processor() or platform.machine()
