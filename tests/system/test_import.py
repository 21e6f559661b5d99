"""How MXNet is imported: among stand-ins that leave nothing behind, and in one line where that fails."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers.processes import ROOT

from noisin.system import mxnet_import
from noisin.system.mxnet_import import stand_ins

SRC = ROOT / "src"
RENAMED = {name for name, today in mxnet_import._RENAMED.items() if hasattr(np, today)}
NAMES = sorted({*mxnet_import._VALUES, *mxnet_import._GONE, *RENAMED} - {"bool"})
# What MXNet and noisin may change in a process, printed where it has changed.
CHANGES = """
import sys, warnings
import numpy

def state():
    modules = {name for name in sys.modules if name.startswith("distutils")}
    names = {name for name in vars(numpy) if not name.startswith("_")}
    return names, modules, list(warnings.filters), list(sys.meta_path), sys.excepthook, sys.path[:]

for name in ("fft", "linalg", "random", "ma", "polynomial", "lib", "core", "char", "rec", "ctypeslib", "testing"):
    getattr(numpy, name, None)  # NumPy imports some of its modules when they are first asked for
if sys.version_info < (3, 12):
    import distutils.version  # Python's own, which MXNet imports
try:
    import onnx  # which MXNet imports where it is installed; it asks NumPy for more
except ImportError:
    pass
before = state()
import noisin, mxnet
assert (mxnet.nd.ones((2,)) + 1).asnumpy().tolist() == [2, 2]
for one, other in zip(before, state()):
    if one != other:
        print(sorted(set(map(str, one)) ^ set(map(str, other))))
"""


def run(*arguments, path=()):
    """Run Python with these folders, and then the sources, as PYTHONPATH."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, [*path, SRC])), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.smoke
def test_nothing_is_left_behind_but_numpys_bool_where_it_has_none():
    result = run("-W", "ignore", "-c", CHANGES)
    assert result.returncode == 0, result.stderr
    expected = "" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "['bool']\n"
    assert result.stdout == expected


@pytest.mark.smoke
def test_warnings_as_errors_do_not_stop_the_import():
    result = run("-W", "error", "-c", "import noisin, mxnet, gluonnlp; print(mxnet.np.ones(2)[mxnet.np.ones(2) > 0])")
    assert (result.stdout, result.stderr) == ("[1. 1.]\n", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_numpy_lacks_is_there_for_as_long_as_it_takes(monkeypatch, name):
    monkeypatch.delitem(vars(np), name, raising=False)
    with pytest.raises(ZeroDivisionError), stand_ins():
        assert name in vars(np)
        raise ZeroDivisionError  # as an import may fail
    assert name not in vars(np)


@pytest.mark.parametrize("name", [*NAMES, "bool"])
def test_a_name_that_numpy_has_stays_as_it_is(monkeypatch, name):
    own = object()
    monkeypatch.setitem(vars(np), name, own)
    with stand_ins():
        assert vars(np)[name] is own
    assert vars(np)[name] is own


def test_numpys_bool_stays(monkeypatch):
    monkeypatch.delitem(vars(np), "bool", raising=False)
    with stand_ins():
        pass
    assert np.bool is bool


def test_what_stands_in_means_the_same():
    with warnings.catch_warnings(), stand_ins():
        warnings.simplefilter("ignore")
        assert np.PINF == np.Inf == -np.NINF == float("inf") and np.isnan(np.NaN) and np.NZERO == np.PZERO == 0
        assert np.alltrue([1, 1]) and np.sometrue([0, 1]) and np.product([2, 3]) == 6 and np.trapz([1, 1, 1]) == 2


@pytest.mark.parametrize("setuptools", [False, True])
def test_distutils_is_there_on_python_3_12_and_gone_afterwards(monkeypatch, setuptools):
    for name in [name for name in sys.modules if name.split(".")[0] == "distutils"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "version_info", (3, 12))
    if setuptools:
        monkeypatch.setitem(sys.modules, "distutils", np)
    with stand_ins():
        if setuptools:
            assert sys.modules["distutils"] is np
        else:
            from distutils.version import LooseVersion, StrictVersion

            assert LooseVersion("1.9.3") < LooseVersion("1.17") == StrictVersion("1.17")
    assert ("distutils" in sys.modules, "distutils.version" in sys.modules) == (setuptools, False)


# ---- an MXNet that cannot be loaded --------------------------------------------------------------------------------

AGAIN = r"python -m pip install --no-deps --force-reinstall mxnet==1\.9\.1"


@pytest.mark.parametrize(
    "code, says",
    [
        ("__version__ = '1.7.0.post2'", rf"its version is 1\.7\.0\.post2: {AGAIN}"),
        ("", rf"its version is unknown: {AGAIN}"),
        ("from mxnet import nd", rf"cannot import name 'nd' .*: {AGAIN}"),
        ("raise RuntimeError('Cannot find the library.\\nCandidates:\\n')", rf"Cannot find the library\.: {AGAIN}"),
        ("import no_such_package", "No module named 'no_such_package': python -m pip install no_such_package"),
        (
            "import ctypes; ctypes.CDLL('libquadmath.so.99')",
            r"libquadmath\.so\.99: .*: apt-get install libgomp1 libquadmath0, or your system's like",
        ),
        (
            "import ctypes; ctypes.CDLL('libarmpl_lp64_mp.so.99')",
            r"libarmpl_lp64_mp\.so\.99: .*: install the Arm Performance Libraries, or use Docker as the README says",
        ),
    ],
    ids=["other version", "empty", "half", "no library", "no dependency", "no system library", "no Arm library"],
)
def test_an_mxnet_that_does_not_load_is_one_line_in_a_command_and_an_import_error_elsewhere(tmp_path, code, says):
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "mxnet" / "__init__.py").write_text(code)
    result = run("-m", "noisin", "train", path=[tmp_path])
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(f"noisin: error: MXNet 1.9.1 does not load: {says}\n", result.stderr)
    code = "import noisin\ntry: import mxnet\nexcept ImportError as error: print(error)"
    assert run("-c", code, path=[tmp_path]).stdout == result.stderr[len("noisin: error: ") :]


@pytest.mark.parametrize("half", [False, True])
def test_a_missing_mxnet_is_one_line_that_says_how_to_install_it(tmp_path, half):
    if half:  # a folder that an interrupted installation has left
        (tmp_path / "mxnet" / "gluon").mkdir(parents=True)
    result = run("-S", "-m", "noisin", "--version", path=[tmp_path])  # -S: without the installed packages
    line = "MXNet 1.9.1 is not installed: python -m pip install --no-deps mxnet==1.9.1\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"noisin: error: {line}")


def test_a_program_of_somebody_elses_can_catch_it(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").touch()
    program = "try: import noisin\nexcept ImportError as error: print('caught', error)"
    (tmp_path / "other" / "__main__.py").write_text(program, encoding="utf-8")
    result = run("-S", "-m", "other", path=[tmp_path])
    assert (result.returncode, result.stdout[:12]) == (0, "caught MXNet"), result.stderr


@pytest.mark.parametrize(
    "command, ends",
    [
        (["noisin", "train"], (130, "noisin: interrupted; nothing is left half-written\n")),
        (["experiments", "demo"], (-signal.SIGINT, "noisin: interrupted\n")),  # while it imports its own modules
    ],
)
def test_an_interruption_while_mxnet_loads_is_one_line(tmp_path, command, ends):
    (tmp_path / "mxnet.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    result = run("-m", *command, path=[tmp_path])
    assert (result.returncode, result.stderr) == ends
