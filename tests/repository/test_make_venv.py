"""The environment that make makes, and the smoke set on every Python."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers.processes import ENV, ROOT, run, stub

MAKE_VENV = ROOT / "tools" / "make_venv.py"


@pytest.fixture
def make_venv(monkeypatch):
    monkeypatch.setenv("CC", "cc")
    spec = importlib.util.spec_from_file_location("make_venv", MAKE_VENV)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_that_the_system_lacks_is_one_line_with_debians_packages(make_venv, monkeypatch, capsys):
    make_venv._check_system(None)  # here nothing is missing
    monkeypatch.setattr(make_venv, "find_spec", lambda name: None)
    monkeypatch.setattr(make_venv.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    monkeypatch.setattr(make_venv, "_loads", lambda name: None)
    monkeypatch.setattr(make_venv.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(SystemExit) as end:
        make_venv._check_system(None)
    python = f"python3.{sys.version_info[1]}"
    assert (end.value.code, capsys.readouterr().err) == (
        2,
        "make-venv: this system lacks venv, Python.h, a C compiler with OpenMP (CC=false is none), libgomp.so.1, "
        f"libquadmath.so.0: apt-get install {python}-venv {python}-dev gcc libc6-dev libgomp1 libquadmath0\n",
    )


def test_aarch64_without_arms_libraries_is_one_line(make_venv, monkeypatch, capsys):
    monkeypatch.setattr(make_venv.platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit):
        make_venv._check_system(None)
    error = capsys.readouterr().err
    assert error.startswith("make-venv: MXNet on aarch64 needs the Arm Performance Libraries: ")
    assert error.count("\n") == 1
    monkeypatch.setattr(make_venv, "_loads", lambda name: True)
    make_venv._check_system(None)


@pytest.mark.parametrize("cc, usable", [("cc -O2", True), ("false", False), ("no-such-compiler", False)])
def test_the_compiler_is_tried(make_venv, monkeypatch, cc, usable):
    monkeypatch.setenv("CC", cc)
    if usable:
        make_venv._check_system(None)
    else:
        with pytest.raises(SystemExit):
            make_venv._check_system(None)


@pytest.mark.parametrize(
    "said, means",
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'SSLError(SSLCertVerificationError(1, "
            "'[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)'))'\n"
            "ERROR: Could not find a version that satisfies the requirement pip (from versions: none)",
            "the package index's certificate is not trusted",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk is full: make room; then run make again",
        ),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(\"Failed to establish a "
            "new connection: [Errno -3] Temporary failure in name resolution\")'",
            "the package index cannot be reached: check the network; then run make again",
        ),
    ],
)
def test_why_a_command_failed_is_one_line(make_venv, capsys, said, means):
    with pytest.raises(SystemExit) as end:
        make_venv._run(sys.executable, "-c", f"import sys; print({said!r}); sys.exit(1)")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"make-venv: {means}") and error.count("\n") == 1


def test_an_unknown_reason_is_shown(make_venv, capsys):
    with pytest.raises(SystemExit):
        make_venv._run(sys.executable, "-c", "import sys; print('error: the reason'); sys.exit(1)")
    assert capsys.readouterr().err.splitlines()[::2] == [
        "error: the reason",
        "make-venv: it failed, see above; then run make again",
    ]


INDEX = {"PIP_FIND_LINKS": "", "PIP_NO_INDEX": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull}


@pytest.mark.slow
def test_no_network_is_one_line(tmp_path):
    nowhere = {**INDEX, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}
    result = run([sys.executable, MAKE_VENV, tmp_path / "venv"], **nowhere)
    assert result.returncode == 2
    assert result.stderr == "make-venv: the package index cannot be reached: check the network; then run make again\n"


@pytest.mark.slow
def test_an_interruption_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {**INDEX, "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/"}
        process = subprocess.Popen(
            [sys.executable, str(MAKE_VENV), str(tmp_path / "venv")],
            cwd=ROOT,
            env={**ENV, **index},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        silent.settimeout(60)
        asking = silent.accept()[0]  # pip asks for the first package
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30)[1] == "make-venv: interrupted; run make again\n"
        asking.close()
    assert process.returncode == 130


def test_without_the_driver_nothing_is_downloaded_for_a_gpu(tmp_path):
    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has NVIDIA's driver")
    result = run([sys.executable, MAKE_VENV, tmp_path / "venv", "requirements-gpu.txt"])
    assert result.returncode == 2 and result.stdout == "" and not (tmp_path / "venv").exists()
    assert "(libcuda.so.1): install it" in result.stderr and result.stderr.count("\n") == 1


def test_smoke_all_says_what_passed_and_what_failed_and_what_was_not_found(tmp_path):
    folder = tmp_path / "bin"
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYENV_ROOT": tmp_path}
    for minor in range(8, 15):
        stub(folder / f"python3.{minor}", "exit 1")
    assert run(["tools/smoke-all"], **path).returncode == 1  # nothing was tried
    made = 'mkdir -p "$2/bin"; echo "#!/bin/sh" >"$2/bin/python"; chmod +x "$2/bin/python"'
    stub(folder / "python3.9", f'[ "$1" = -c ] || {{ {made}; }}')
    result = run(["tools/smoke-all"], **path)
    says = "smoke-all: passed on Python 3.9; failed on none; not found: 3.8 3.10 3.11 3.12 3.13 3.14\n"
    assert (result.returncode, result.stdout) == (0, says)
    stub(folder / "python3.12", '[ "$1" = -c ]')  # no environment can be made with it
    result = run(["tools/smoke-all"], **path)
    says = "smoke-all: passed on Python 3.9; failed on 3.12; not found: 3.8 3.10 3.11 3.13 3.14\n"
    assert (result.returncode, result.stdout) == (1, says)
