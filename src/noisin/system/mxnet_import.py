"""Import of MXNet 1.9.1 on today's NumPy and Python, which lack some names that MXNet looks up.

Stand-ins replace the missing names only while MXNet loads, except `numpy.bool`, which MXNet also reads later. Nothing
inside the packages is changed.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, Optional

VERSION = "1.9.1"
# Without dependencies: MXNet works with NumPy 2, but its metadata refuse it.
INSTALL = f"python -m pip install --no-deps mxnet=={VERSION}"

_VALUES = {"PZERO": 0.0, "NZERO": -0.0, "NINF": -float("inf"), "bool": bool}
_VALUES.update(dict.fromkeys(("PINF", "INF", "Inf", "infty"), float("inf")))
_VALUES.update(dict.fromkeys(("NAN", "NaN"), float("nan")))
_RENAMED = {"alltrue": "all", "sometrue": "any", "product": "prod", "cumproduct": "cumprod", "row_stack": "vstack"}
_RENAMED.update({"trapz": "trapezoid", "float_": "float64", "round_": "round"})
_GONE = ("in1d", "msort", "mirr", "npv", "pmt", "ppmt", "pv", "rate")


def _gone(*_: Any, **__: Any) -> None:
    raise NotImplementedError("this function is not in the installed NumPy")


@functools.total_ordering
class _Version:
    """A comparable version: all that MXNet uses of distutils.version."""

    def __init__(self, text: str) -> None:
        self.version = [int(number) for number in re.findall(r"\d+", text)[:3]]

    def __eq__(self, other: Any) -> bool:
        return self.version == other.version

    def __lt__(self, other: Any) -> bool:
        return self.version < other.version


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Put stand-ins where names are missing, and remove them at the end, except `numpy.bool`."""
    import numpy

    wanted = {**_VALUES, **dict.fromkeys(_GONE, _gone)}
    wanted.update({name: getattr(numpy, today) for name, today in _RENAMED.items() if hasattr(numpy, today)})
    # Not hasattr, with which NumPy warns of deprecated names.
    missing = {name: value for name, value in wanted.items() if name not in vars(numpy)}
    modules: Dict[str, ModuleType] = {}
    if sys.version_info >= (3, 12) and "distutils" not in sys.modules:  # setuptools may provide its own
        modules = {name: ModuleType(name) for name in ("distutils", "distutils.version")}
        vars(modules["distutils.version"]).update(LooseVersion=_Version, StrictVersion=_Version)
    vars(numpy).update(missing)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in missing.keys() - {"bool"}:
            delattr(numpy, name)
        for name in modules:
            sys.modules.pop(name, None)


def check_installed() -> None:
    """Raise ImportError if MXNet is missing, or only a folder that an interrupted installation left."""
    if "mxnet" in sys.modules:
        return
    spec = PathFinder.find_spec("mxnet")
    if spec is None or spec.origin is None:
        raise ImportError(f"MXNet {VERSION} is not installed: {INSTALL}")


def prepare(refuse: Callable[[ImportError], None]) -> None:
    """Make every `import mxnet` load MXNet among stand-ins.

    Parameters
    ----------
    refuse : function (ImportError)
        Raises the error that it gets, which says in one line why MXNet does not load.
    """
    if "mxnet" not in sys.modules:
        sys.meta_path.insert(0, _Finder(refuse))


class _Finder:
    """Finds MXNet, and leaves Python's list of finders once MXNet is loaded."""

    def __init__(self, refuse: Callable[[ImportError], None]) -> None:
        self.refuse = refuse

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        spec = PathFinder.find_spec(name) if name == "mxnet" else None
        if spec is not None and spec.loader is not None:
            usual = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.load(module, usual)  # type: ignore[method-assign]
        return spec

    def load(self, module: ModuleType, usual: Callable[[ModuleType], None]) -> None:
        try:
            with warnings.catch_warnings(), stand_ins():
                warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mxnet(\.|$)")
                usual(module)
            found = getattr(module, "__version__", "unknown")
            if found != VERSION:
                raise ImportError(f"its version is {found}")
        except Exception as error:
            self.refuse(ImportError(f"MXNet {VERSION} does not load: {_reason(error)}"))
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def _reason(error: Exception) -> str:
    """Return why MXNet does not load, and what to do."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("mxnet"):
        return f"{text}: python -m pip install {error.name}"
    if "libarmpl" in text:
        return f"{text}: install the Arm Performance Libraries, or use Docker as the README says"
    if isinstance(error, OSError) and "lib" in text and "cannot open shared object" in text:
        return f"{text}: apt-get install libgomp1 libquadmath0, or your system's like"
    return f"{text}: {INSTALL.replace('--no-deps', '--no-deps --force-reinstall')}"
