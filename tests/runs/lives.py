"""Lives of the command `noisin`: processes that a test may end, or let run out of disk, as often as it likes.

They are forked from a server that has imported everything and computed nothing, so that a life begins within
milliseconds and not after the second that importing MXNet takes. This module is all that they import for it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

from tqdm import tqdm

from noisin.commands.main import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["noisin.commands.main", "noisin.commands.train"])


class Life:
    """A process that runs `noisin` with these arguments, from now on.

    `fate` is called in it first: a function below, with its arguments bound.
    """

    def __init__(self, arguments, fate=None):
        self._output, output = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_live, args=(arguments, output, fate), daemon=True)
        # The first of them starts the server. One thread: two spin while they wait, on a busy machine for minutes.
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            self._process.start()
        output.close()

    def end(self, after=None):
        """Wait until it ends, or for `after` seconds and kill it: its exit status, and what it said."""
        self._process.join(after)
        self._process.kill()
        self._process.join()
        with self._output, open(self._output.fileno(), encoding="utf-8", closefd=False) as said:
            return self._process.exitcode, said.read()


def _live(arguments, output, fate):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # of files that cannot seek
    tqdm.set_lock(threading.RLock())  # its own is one of the system's, which a kill would leave behind
    if fate:
        fate()
    sys.exit(main(arguments))


def die_before_what_is_new(directory, seen):
    """SIGKILL before the first operation on a file of `directory` that the file `seen` does not have, but has then."""
    known = seen.read_text().splitlines() if seen.exists() else []

    def watch(event, path):
        newest = max((file.name for file in directory.glob("epoch-*.safetensors")), default="")
        name = re.sub("[.][0-9a-f]{32}", "", path.name)
        operation = f"{event} {name} {newest}"
        if (event, path.suffix) == ("os.remove", ".tmp"):
            operation = event  # of what an earlier life has left: once is enough
        if operation not in known:
            with open(seen, "a", encoding="utf-8") as file:
                print(operation, file=file)
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(directory, watch)


def run_out_of_disk(directory, number, size):
    """Let the kernel refuse what is beyond `size` bytes of the `number`-th file that gets written in `directory`.

    It is a full disk but for the error's name, EFBIG in the place of ENOSPC. Python ignores the signal that comes too.
    """
    left = number

    def watch(event, path):
        nonlocal left
        left -= event == "os.rename"  # the file before is whole
        if left == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    _watch(directory, watch)


def note_files(directory, notes):
    """Add a line to the file `notes` for each file that gets written in `directory`: its size and its name."""

    def watch(event, path):
        if event == "os.rename":
            with open(notes, "a", encoding="utf-8") as file:
                print(path.stat().st_size, path.name, file=file)

    _watch(directory, watch)


def _watch(directory, watch):
    """Call `watch(event, path)` before this process opens for writing, renames or removes a file of `directory`.

    Python raises the events, whoever asks for the operation; MXNet opens and writes files without it.
    """

    def hook(event, arguments):
        if event not in ("open", "os.rename", "os.remove") or not isinstance(arguments[0], (str, os.PathLike)):
            return
        writes = event != "open" or set(arguments[1] or "") & set("wax+")
        path = Path(arguments[0])
        if writes and path.parent == directory:
            watch(event, path)

    sys.addaudithook(hook)
