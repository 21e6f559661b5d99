"""Reading, writing and locking files, so that nothing is lost and every failure is one clear line."""

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
from typing import IO, Any, Dict, List, NoReturn, Tuple, Union

from noisin.system.errors import UserError, escape_unprintable

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of this machine
MAX_FILE = MEMORY // 2  # bytes; a file that is read whole must leave room for what is made of it
# Bytes. Parsed JSON may take some 25 times as much (a list of empty lists). The largest state, of 10,000 epochs of 64
# noisy layers, has about 18 MB.
MAX_JSON = 32 * 2**20
BRIEF = 3.0  # seconds to wait for another process that may be about to end
_LONGEST_NUMBER = 40  # characters of a number; those that we write have at most 24


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: it is there whole or not at all, and stays through a power failure.

    Parameters
    ----------
    path : Path
        Its folder is made if it is missing. A temporary file beside it is written, flushed to disk and renamed.
    content : bytes

    Raises
    ------
    OSError
        If that fails; `path` is then unchanged, and the temporary file is gone.
    """
    _make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.write_bytes(content)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:  # Ctrl-C too
        if aside.exists():
            aside.unlink()


def _make_folder(path: Path) -> None:
    """Make a folder and those above it so that a power failure does not undo it."""
    if not path.is_dir():
        _make_folder(path.parent)
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:  # a file
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries: otherwise a power failure can undo a rename."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(folder)


def write_file(path: Path, content: Union[bytes, str]) -> None:
    """Write a file as `write_whole`, text in UTF-8, but raise a UserError that names a file that cannot be written."""
    try:
        write_whole(path, content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically.

    Parameters
    ----------
    path : Path
    content : JSON value

    Raises
    ------
    UserError
        If the file cannot be written.
    ValueError
        For a number that JSON cannot hold: NaN or infinity.
    """
    write_file(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_regular(path: Path, expected: str, most: int = MAX_FILE) -> bytes:
    """Return the content of a regular file; never wait for a pipe or read an endless device.

    Parameters
    ----------
    path : Path
    expected : str
        What the file should be, for messages.
    most : int, default half of this machine's memory
        Largest size in bytes.

    Returns
    -------
    bytes

    Raises
    ------
    UserError
        If there is no regular file, or it is too large or cannot be read.
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
    """Read a JSON object from a file of at most 32 MiB.

    Raises
    ------
    UserError
        If the file cannot be read, or `parse_json` refuses it, or it is not an object.
    """
    try:
        content = parse_json(read_regular(path, "a JSON object", MAX_JSON))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def parse_json(content: bytes) -> Any:
    """Parse strict JSON, which every reader understands in the same way.

    Parameters
    ----------
    content : bytes
        UTF-8.

    Returns
    -------
    JSON value

    Raises
    ------
    ValueError
        For anything but JSON in UTF-8, and for a repeated key, NaN, Infinity, a number that a float cannot hold or of
        more than 40 characters, half of a surrogate pair, or too deep nesting.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_refuse
        )
        if "\\u" in text:  # only an escape can be half of a surrogate pair
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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number to compute with")


def hold_folder(path: Path, patience: float = BRIEF) -> IO[str]:
    """Make and lock a folder, and remove temporary files that a killed process left in it.

    Parameters
    ----------
    path : Path
    patience : float, default 3
        Seconds to wait for another process that holds the lock. After 3 s, a message on standard error names it.

    Returns
    -------
    file
        The lock. It is let go when the file is closed, or when the process ends in any way.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    UserError
        If another process still holds the lock, naming it.
    """
    _make_folder(path)
    file = open(path / "lock", "a+", encoding="utf-8", errors="replace", opener=_open_itself)
    begun, told = time.monotonic(), False
    while not _lock(file):
        waited = time.monotonic() - begun
        if waited >= patience:
            holder = _holder(file)
            file.close()
            raise UserError(f"{path} is in use by {holder}: wait for it, or stop it")
        if waited >= BRIEF and not told:
            print(escape_unprintable(f"waiting for {_holder(file)}, which uses {path}"), file=sys.stderr)
            told = True
        time.sleep(0.1)
    try:
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:  # a full disk
        file.close()
        raise
    for torn in path.glob(f".*.{'[0-9a-f]' * 32}.tmp"):  # only the names that `write_whole` gives
        torn.unlink(missing_ok=True)
    return file


def is_locked(path: Path) -> bool:
    """Return whether any process has locked the file `path`."""
    if not path.exists():
        return False
    with open(path, "rb", opener=_open_itself) as file:
        return not _lock(file)


def _holder(file: IO[str]) -> str:
    """Return the name of the process that has locked this file, as it wrote it there."""
    file.seek(0)
    return file.read(200).strip() or "another process"


def _open_itself(path: str, flags: int) -> int:
    """Open a lock without following a link, whose target would be overwritten, and without waiting for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _lock(file: IO[Any]) -> bool:
    """Lock an open file; return False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True
