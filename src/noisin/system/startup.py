"""The work of `import noisin`, before MXNet is imported; it imports neither MXNet nor NumPy."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from importlib import util
from types import TracebackType
from typing import Optional, Type

from noisin.system import mxnet_import
from noisin.system.cuda import load_cuda_libraries
from noisin.system.threads import leave_threads_to_the_engine, set_threads, threads

COMMANDS = ("noisin", "experiments", "benchmarks")
COMPILED_PARTS = ("_crossentropy", "_lstm", "_normals", "_updates")

# Bytes; with one thread below 600 MB, with 8 below 1,700 MB, MXNet was seen to crash or to wait for ever.
ADDRESS_SPACE, OF_A_THREAD = 1 << 30, 160 << 20
ENGINE_THREADS = 16  # more than MXNet starts besides those it computes with; 6 were seen

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def check_cluster_role() -> None:
    """Raise ImportError if `import mxnet` would turn this process into a parameter server and never return."""
    role = os.environ.get("DMLC_ROLE")
    if role in ("server", "scheduler"):
        raise ImportError(
            f"DMLC_ROLE={role} is set: `import mxnet` would block for ever, serving other processes; "
            "unset it (a server or scheduler of a cluster runs `python -c 'import mxnet'` without noisin)"
        )


def check_address_space() -> None:
    """Raise ImportError where the system allows less memory than MXNet needs, which would crash or wait for ever."""
    if "mxnet" in sys.modules:  # a host has imported it, so that it has enough
        return
    allowed, needed = resource.getrlimit(resource.RLIMIT_AS)[0], ADDRESS_SPACE + OF_A_THREAD * threads()
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise ImportError(
            f"this process may use {allowed >> 20} MiB of address space, and MXNet needs {needed >> 20} MiB for "
            f"{threads()} of its threads: raise the limit (ulimit -v), or lower OMP_NUM_THREADS"
        )


def check_thread_limit() -> None:
    """Raise ImportError where the system allows fewer threads than MXNet starts, which would crash."""
    done = threading.Event()
    try:
        for _ in range(ENGINE_THREADS + threads()):
            threading.Thread(target=done.wait, daemon=True).start()
    except RuntimeError:
        raise ImportError(
            "the system allows this process no more threads: raise the limit (ulimit -u, or the container's)"
        ) from None
    finally:
        done.set()


def compiled_part(name: str) -> str:
    """Return the path of a compiled library of this package.

    Parameters
    ----------
    name : str
        One of `COMPILED_PARTS`.

    Returns
    -------
    str

    Raises
    ------
    ImportError
        If it is not installed.
    """
    spec = util.find_spec(f"noisin.native.{name}")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"noisin's compiled part {name} is missing: install the package (make venv, or pip install .)"
        )
    return spec.origin


def keep_freed_memory() -> None:
    """Let the C library keep freed arrays for the next training step, instead of returning them to the system.

    MXNet allocates arrays of tens of megabytes in each step, and glibc maps each of them anew: 11,000 page faults a
    step on the Penn Treebank, a tenth of its time. One arena serves all threads, because other arenas cannot hold
    arrays above 64 MB. Peak memory is about the same, but the process keeps it until its end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)


def _is_command() -> bool:
    """Return whether Python was started for a command of this repository.

    For `python -m PACKAGE`, sys.argv[0] is "-m" while Python looks for any PACKAGE, then the path of its __main__.py.
    """
    folder, name = os.path.split(sys.argv[0] if sys.argv else "")
    return (os.path.basename(folder) if name == "__main__.py" else name) in (*COMMANDS, "-m")


def interrupt_in_one_line() -> None:
    """Report an interruption in one line at any time, e.g. in the seconds while MXNet loads."""
    usual = sys.excepthook

    def hook(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("noisin: interrupted", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook


def refuse(error: ImportError) -> None:
    """Raise the error; in a command, where nobody can catch it, print it as one line and exit with status 2."""
    if _is_command():
        print(f"noisin: error: {error}", file=sys.stderr)
        raise SystemExit(2)
    raise error


def prepare() -> None:
    """Prepare the process for MXNet, once, for `import noisin`."""
    if _is_command():  # a host process decides these itself
        interrupt_in_one_line()
        keep_freed_memory()  # before there are threads, whose arenas would stay
    try:
        mxnet_import.check_installed()
        check_cluster_role()
        for name in COMPILED_PARTS:
            compiled_part(name)
        set_threads()
        leave_threads_to_the_engine()
        load_cuda_libraries()
        check_address_space()
        if _is_command():  # a host's threads are its own
            check_thread_limit()
    except ImportError as error:
        refuse(error)
    mxnet_import.prepare(refuse)
