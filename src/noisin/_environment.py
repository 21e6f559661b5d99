"""What must be right before MXNet is imported: Python and numpy versions, cluster variables, threads, memory, warnings.

Nothing here imports mxnet, gluonnlp or numpy: each of these checks is about what such an import would do.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from importlib import metadata, util
from types import TracebackType
from typing import Optional, Type

NUMPY_PIN = "numpy>=1.19,<1.24"
COMMANDS = ("noisin", "experiments", "benchmarks")
COMPILED_PARTS = ("_crossentropy", "_normals", "_updates")

# In the order in which they need one another; pinned in requirements-gpu.txt.
_CUDA_PACKAGES = (
    "cuda-runtime",
    "nvtx",
    "cuda-nvrtc",
    "cublas",
    "cufft",
    "curand",
    "cusparse",
    "cusolver",
    "cudnn",
    "nccl",
)
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def check_python() -> None:
    """Raise ImportError on a Python that MXNet 1.9.1 does not run on."""
    if sys.version_info >= (3, 12):
        found = ".".join(str(part) for part in sys.version_info[:3])
        raise ImportError(
            f"noisin runs on Python 3.8 to 3.11, not on {found}: MXNet 1.9.1 needs {NUMPY_PIN}, which 3.12 cannot build"
        )


def check_numpy() -> None:
    """Raise ImportError in one line if numpy is missing or is one that MXNet 1.9.1 cannot be imported with."""
    loaded = sys.modules.get("numpy")
    try:
        # A numpy that is loaded already is the one that counts, whatever is installed.
        found = str(getattr(loaded, "__version__", "")) or metadata.version("numpy")
    except metadata.PackageNotFoundError:
        raise ImportError(f"noisin needs {NUMPY_PIN}, but numpy is not installed: {_install_command()}") from None
    version = re.match(r"(\d+)\.(\d+)", found)
    if version and (int(version.group(1)), int(version.group(2))) >= (1, 24):
        raise ImportError(
            f"noisin needs {NUMPY_PIN}, because MXNet 1.9.1 fails to import with numpy {found}, the one installed: "
            f"{_install_command()}"
        )


def _install_command() -> str:
    return f'python -m pip install "{NUMPY_PIN}"'


def check_cluster_role() -> None:
    """Raise ImportError where `import mxnet` would turn this process into a parameter server and never return."""
    role = os.environ.get("DMLC_ROLE")
    if role in ("server", "scheduler"):
        raise ImportError(
            f"DMLC_ROLE={role} is set: `import mxnet` would block for ever, serving other processes; "
            "unset it (a server or scheduler of a cluster runs `python -c 'import mxnet'` without noisin)"
        )


def compiled_part(name: str) -> str:
    """Path of the library made of a C file of this package; raises ImportError where it was not installed."""
    spec = util.find_spec(f"noisin.{name}")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"noisin's compiled part {name} is missing: install the package (make venv, or pip install .)"
        )
    return spec.origin


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def threads() -> int:
    """Count the threads that MXNet computes with."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // 2))


def set_threads() -> None:
    """Let MXNet use every usable core, unless OMP_NUM_THREADS says otherwise.

    By itself MXNet takes half of the processors it sees, and it looks only once, while it is imported.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given:
        if not re.fullmatch("[1-9][0-9]{0,3}", given):  # of more the process would die without a word
            raise ImportError(f"OMP_NUM_THREADS is '{given}': it must be a whole number from 1 to 9999")
        return
    if "mxnet" in sys.modules:
        warnings.warn(
            "mxnet was imported before noisin, with OMP_NUM_THREADS unset, and so uses half of the cores: "
            "import noisin first, or set OMP_NUM_THREADS",
            RuntimeWarning,
            stacklevel=4,  # set_threads, prepare, noisin/__init__.py, the user's import
        )
        return
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())


def leave_threads_to_the_engine() -> None:
    """Let MXNet copy a large array with one thread, unless the environment says otherwise.

    It would copy with several, in the thread that asks for the copy, as reading a checkpoint does.
    GNU's OpenMP counts those too from then on, more than there are cores, and has the engine's threads sleep at every
    turn instead of waiting awake: a training step on two cores then takes half as long again.
    """
    os.environ.setdefault("MXNET_CPU_PARALLEL_SIZE", str(2**31 - 1))


def keep_freed_memory() -> None:
    """Let the C library keep freed arrays for the next training step, instead of giving them back to the system.

    MXNet allocates arrays of tens of megabytes anew in each step, and glibc maps each of them afresh: 11,000 page
    faults a step on the Penn Treebank, a tenth of its time. One arena, because the others cannot hold arrays above
    64 MB. Peak memory is about the same, but it is kept until the end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)


def load_cuda_libraries() -> None:
    """Load the CUDA libraries that a GPU build of MXNet was linked with, where pip has put them.

    The dynamic linker does not look into site-packages. Does nothing for the CPU build; raises ImportError where a
    library is missing or does not load.
    """
    try:
        metadata.version("mxnet-cu117")
    except metadata.PackageNotFoundError:
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise ImportError(
            "MXNet's GPU build needs NVIDIA's driver (libcuda.so.1), which is not on this machine: "
            "install the driver, or take the CPU build (pip install mxnet==1.9.1 in place of mxnet-cu117)"
        ) from None
    os.environ.setdefault("MXNET_CUDNN_LIB_CHECKING", "0")  # else a warning that cuDNN is newer than at its build
    for package in (f"nvidia-{name}-cu11" for name in _CUDA_PACKAGES):
        try:
            files = metadata.files(package) or ()
            for file in files:
                if file.match("lib/lib*.so*"):
                    ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
        except (metadata.PackageNotFoundError, OSError) as error:
            raise ImportError(
                f"MXNet's GPU build needs {package}, which is missing or does not load ({error}): "
                "pip install --no-deps -r requirements-gpu.txt"
            ) from None


def silence_import_warnings() -> None:
    """Ignore the DeprecationWarnings that come from inside mxnet and gluonnlp.

    Both are retired and use `numpy.bool` and `distutils` while they load, so that `python -W error` could not import
    them. Python ignores these warnings by default; warnings from any other module are left as they were.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(mxnet|gluonnlp)(\.|$)")


def _is_command() -> bool:
    """Whether Python was started for a command of this repository.

    In `python -m PACKAGE` sys.argv[0] is "-m" while Python looks for PACKAGE, whichever that is, then its __main__.py.
    """
    folder, name = os.path.split(sys.argv[0] if sys.argv else "")
    return (os.path.basename(folder) if name == "__main__.py" else name) in (*COMMANDS, "-m")


def interrupt_in_one_line() -> None:
    """Say an interruption in one line wherever it comes, as in the seconds that MXNet takes to load."""
    usual = sys.excepthook

    def hook(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("noisin: interrupted", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook


def prepare() -> None:
    """Do all of the above, once, for `import noisin`."""
    try:
        check_python()
        check_numpy()
        check_cluster_role()
        for name in COMPILED_PARTS:
            compiled_part(name)
        set_threads()
        leave_threads_to_the_engine()
        load_cuda_libraries()
    except ImportError as error:
        if _is_command():  # no code of the user's can catch the exception; a traceback would bury the line that helps
            print(f"noisin: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        raise
    if _is_command():
        interrupt_in_one_line()
    keep_freed_memory()
    silence_import_warnings()
