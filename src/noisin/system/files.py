"""Reading and writing files so that nothing is lost and every failure is one clear line."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import stat
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Tuple, Union

from noisin.system.errors import UserError, printable

# Bytes.
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MAX_FILE = MEMORY // 2  # what is read whole must leave room for what is made of it
# Read, it may take some 25 times as much (a list of empty lists). The state of 10,000 epochs of 64 noisy layers, the
# most there are, has about 18 MB.
MAX_JSON = 32 * 2**20
BRIEF = 3.0  # seconds to wait for another process that may be about to end
_LONGEST_NUMBER = 40  # digits and signs; what JSON is written with has 24 at the most


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole or not at all, whatever happens meanwhile, and stays once this returns.

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
    _make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:  # Ctrl-C too
        if aside.exists():
            aside.unlink()


def _make_folder(path: Path) -> None:
    """Make a folder, with those above it, so that a power failure does not undo it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Flush what a folder says is in it: without that, a power failure can undo a rename."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(folder)


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """As `write_whole`, with a UserError that names the file where it cannot be written."""
    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename; a value that JSON cannot hold (NaN) is an error of ours."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: Union[bytes, memoryview]) -> None:
    """Write these bytes as `write_whole` does."""
    write_whole(path, lambda aside: aside.write_bytes(content))


def read_regular(path: Path, expected: str, most: int = MAX_FILE) -> bytes:
    """Return the contents of a regular file, without ever waiting for a pipe or reading a device without end.

    Parameters
    ----------
    path : Path
    expected : str
        What should be there, for the message.
    most : int, default half of this machine's memory
        The largest size, in bytes.

    Raises
    ------
    UserError
        That says what is there instead.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path}: not a regular file; expected {expected}")
            if found.st_size > most:
                raise UserError(f"{path}: {found.st_size:,} bytes, expected {expected} of {most:,} at the most")
            return file.read(found.st_size)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected {expected}; put the file there") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a directory, but a file expected ({expected}); remove or rename it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {expected}; make it readable") from None
    except ValueError:  # a name with a zero byte, or that is not Unicode
        raise UserError(f"{path}: not the name of a file; expected {expected}") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory; expected {expected}") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: Path) -> Dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    UserError
        If it cannot be read, or is not an object as `parse_json` takes it.
    """
    try:
        content = parse_json(read_regular(path, "a JSON object", MAX_JSON))
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return content


def parse_json(content: bytes) -> Any:
    """Parse JSON, and nothing beyond it or that another reader could take for something else.

    Raises
    ------
    ValueError
        For anything but UTF-8, a key that is there twice, NaN and Infinity, a number that is too large for a float or
        has more digits than any that was computed, half of a surrogate pair, or nesting without end.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_refuse
        )
        if "\\u" in text:  # the only way to write a character that no file can hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return found


def _whole(text: str) -> int:
    return int(text) if len(text) <= _LONGEST_NUMBER else _refuse(f"a number of {len(text)} digits")


def _finite(text: str) -> float:
    number = float(text) if len(text) <= _LONGEST_NUMBER else math.inf
    return number if math.isfinite(number) else _refuse(text[:_LONGEST_NUMBER])


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number to compute with")


def hold_folder(path: Path, patience: float = BRIEF) -> IO[str]:
    """Make a folder and lock it, and remove what a killed process left half-written in it.

    Parameters
    ----------
    path : Path
    patience : float, default 3
        Seconds to wait for another process.

    Returns
    -------
    file
        The lock, as `open_lock` returns it.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    UserError
        If another process still holds it then, saying which.
    """
    _make_folder(path)
    lock = open_lock(path / "lock", patience)
    for torn in path.glob(f".*.{'[0-9a-f]' * 32}.tmp"):  # as `write_whole` names them: nobody else's
        torn.unlink(missing_ok=True)
    return lock


def open_lock(path: Path, patience: float = BRIEF) -> IO[str]:
    """Lock the file `path` and return it: closing it unlocks it, and so does the end of the process, however it ends.

    Parameters
    ----------
    path : Path
    patience : float, default 3
        Seconds to wait for another process, which may be about to end. Who waits longer than the default is told for
        whom, on standard error.

    Raises
    ------
    UserError
        If another process still has it locked then, saying which.
    """
    file = open(path, "a+", encoding="utf-8", errors="replace", opener=_open_itself)
    begun, told = time.monotonic(), False
    while not _lock(file):
        waited = time.monotonic() - begun
        if waited >= patience:
            holder = _holder(file)
            file.close()
            raise UserError(f"{path.parent} is in use by {holder}: wait for it, or stop it")
        if waited >= BRIEF and not told:
            print(printable(f"waiting for {_holder(file)}, which uses {path.parent}"), file=sys.stderr)
            told = True
        time.sleep(0.1)
    try:
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:  # a full disk
        file.close()
        raise
    return file


def is_locked(path: Path) -> bool:
    """Whether some process has locked the file `path`."""
    if not path.exists():
        return False
    with open(path, "rb", opener=_open_itself) as file:
        return not _lock(file)


def _holder(file: IO[str]) -> str:
    """Who has this file locked, as it says itself."""
    file.seek(0)
    return file.read(200).strip() or "another process"


def _open_itself(path: str, flags: int) -> int:
    """Open a lock and not what it links to, which would be overwritten; a pipe is not waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _lock(file: IO[Any]) -> bool:
    """Lock an open file; False if another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: go on without
    return True
