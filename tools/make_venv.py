"""Make a virtual environment with noisin, its extras and the packages pinned in constraints.txt."""

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
from importlib.util import find_spec

REASONS = {  # what a failed command has printed, and what it means
    "CERTIFICATE_VERIFY_FAILED|certificate verify failed|confirming the ssl certificate": "the package index's "
    "certificate is not trusted: name yours, e.g. PIP_CERT=/etc/ssl/certs/ca-certificates.crt",
    "No space left|Disk quota": "the disk is full: make room",
    "new connection|name resolution|timed out|Connection (refused|reset)|ProxyError":
    "the package index cannot be reached: check the network",
}  # fmt: skip


def _fail(message, status=2):
    print(f"make-venv: {message}", file=sys.stderr)
    sys.exit(status)


def _show(text):
    if sys.stderr.isatty():  # over what it has shown before
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _loads(library):
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None


def _check_system(gpu):
    python, compiler = f"python3.{sys.version_info[1]}", os.environ.setdefault("CC", "cc")
    trial = f"printf '#include <limits.h>\\nint main(void) {{ return 0; }}' | {compiler} -fopenmp -x c -o /dev/null -"
    compiles = subprocess.call(trial, shell=True, stderr=subprocess.DEVNULL) == 0
    lacks = [
        (find_spec("ensurepip"), "venv", f"{python}-venv"),
        (os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"), "Python.h", f"{python}-dev"),
        (compiles, f"a C compiler with OpenMP (CC={compiler} is none)", "gcc libc6-dev"),
        (compiles or _loads("libgomp.so.1"), "libgomp.so.1", "libgomp1"),
        (platform.machine() != "x86_64" or _loads("libquadmath.so.0"), "libquadmath.so.0", "libquadmath0"),
    ]
    lacks = [(what, package) for found, what, package in lacks if not found]
    if lacks:
        what, packages = zip(*lacks)
        _fail(f"this system lacks {', '.join(what)}: apt-get install {' '.join(packages)}")
    if platform.machine() == "aarch64" and not _loads("libarmpl_lp64_mp.so"):
        _fail("MXNet on aarch64 needs the Arm Performance Libraries: install them, or use Docker as the README says")
    if gpu and not _loads("libcuda.so.1"):
        _fail("a GPU needs NVIDIA's driver (libcuda.so.1): install it, or leave DEVICE=gpu out")


def _run(*command):
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace") as process:
        for line in process.stdout:
            lines.append(line)
            _show(line.strip()[:70])
    _show("")
    if process.returncode:
        output = "".join(lines)
        reasons = [reason for words, reason in REASONS.items() if re.search(words, output)]
        if not reasons:
            print(output[-2000:], file=sys.stderr)
        _fail(f"{(reasons or ['it failed, see above'])[0]}; then run make again")


def main(venv, gpu=None):
    """Make the environment; `gpu` is a file of requirements that take the place of MXNet's CPU build."""
    _check_system(gpu)
    python = os.path.join(venv, "bin", "python")
    pip = [python, "-m", "pip", "install", "--no-input", "--progress-bar", "off", "--constraint", "constraints.txt"]
    print(f"==> {venv}: Python {platform.python_version()}; about 200 MB to download, a minute or two", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", "--without-pip", venv)
    _run(python, "-m", "ensurepip")  # venv would not say why it fails
    _run(*pip, "--upgrade", "pip", "setuptools", "wheel", "cython")
    extras = "test,lint,report,notebooks,docs,tensorboard,onnx,cluster,tune"
    _run(*pip, "--no-build-isolation", "--editable", f".[{extras}]")
    if gpu:
        _run(python, "-m", "pip", "uninstall", "--yes", "mxnet")
    _run(*pip, "--no-deps", *(["--requirement", gpu] if gpu else ["mxnet==1.9.1"]))  # its metadata refuse NumPy 2
    _run("env", "-u", "DMLC_ROLE", python, "-c", "import noisin, mxnet, gluonnlp")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        _fail("interrupted; run make again", 130)
