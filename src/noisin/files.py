"""Reading and writing files so that nothing is lost and every failure is one clear line."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from pathlib import Path
from typing import IO, Any, Callable

from noisin.errors import UserError


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole or not at all, whatever happens meanwhile.

    Parameters
    ----------
    path : Path
        Its folder is made if it is not there.
    write : callable
        Fills the file whose path it is given: a temporary one beside `path`, flushed and renamed when it is whole.

    Raises
    ------
    OSError
        If that fails; then `path` is as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:  # Ctrl-C too
        if aside.exists():
            aside.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write these bytes as `write_whole` does."""
    write_whole(path, lambda aside: aside.write_bytes(content))


def read_regular(path: Path, expected: str) -> bytes:
    """Return the contents of a regular file, or raise a UserError that says what is there instead."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: a directory, but a file expected ({expected}); remove or rename it")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; expected {expected}")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected {expected}; put the file there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {expected}; make it readable") from None


def open_lock(path: Path, patience: float = 3.0) -> IO[str]:
    """Lock the file `path` and return it: closing it unlocks it, and so does the end of the process, however it ends.

    Parameters
    ----------
    path : Path
    patience : float, default 3
        Seconds to wait for another process, which may be about to end.

    Raises
    ------
    UserError
        If another process still has it locked then, saying which.
    """
    file = open(path, "a+", encoding="utf-8")
    deadline = time.monotonic() + patience
    while not _lock(file) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not _lock(file):  # a lock that this process has is given again
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise UserError(f"{path.parent} is in use by {holder}: wait for it, or stop it")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def is_locked(path: Path) -> bool:
    """Whether some process has locked the file `path`."""
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        return not _lock(file)


def _lock(file: IO[str]) -> bool:
    """Lock an open file; False if another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: go on without
    return True
