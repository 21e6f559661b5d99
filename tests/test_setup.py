"""Set-up: the environment that make makes, what is set before MXNet is imported, the Makefile's targets."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import noisin
from noisin.system import cuda, mxnet_import
from noisin.system.files import read_json
from noisin.system.threads import SMALL, SPINS, usable_cores

ROOT = Path(__file__).resolve().parent.parent
MAKE_VENV = ROOT / "tools" / "make_venv.py"
# Other than what is given here, a child's environment is this one, without what this test run itself was started with.
ENV = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MAKE", "DMLC_", "PYTHON", "OMP_", "GOMP_", "MXNET_", "MFLAGS"))
    and name not in ("EPOCHS", "METHODS", "SEEDS", "ONLY", "JOBS", "DEVICE", "DTYPE", "ARGS", "PYTEST_ARGS")
}
ENV["PYTHONPATH"] = str(ROOT / "src")


def run(command, cwd=ROOT, **env):
    """Run a command, by default in the repository's root, with these variables on top of ENV."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**ENV, **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )


def python(code, *options, **env):
    return run([sys.executable, *options, "-c", code], **env)


def stub(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n" + text + "\n", encoding="utf-8")
    file.chmod(0o755)
    return file


# ---- tools/make_venv.py --------------------------------------------------------------------------------------------


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


# ---- the guards before MXNet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_a_cluster_role_that_would_block_the_import_is_refused(role):
    result = python("import noisin", DMLC_ROLE=role)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"ImportError: DMLC_ROLE={role} is set")
    assert python("import noisin", DMLC_ROLE="worker").returncode == 0


def test_threads_are_set_before_mxnet_loads_and_only_if_the_user_has_not():
    code = "import noisin, os, sys; print(os.environ['OMP_NUM_THREADS'], 'mxnet' in sys.modules)"
    cores = len(os.sched_getaffinity(0))
    assert python(code).stdout == f"{cores} False\n"
    assert python(code, OMP_NUM_THREADS="").stdout == f"{cores} False\n"
    assert python(code, OMP_NUM_THREADS="3").stdout == "3 False\n"


def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise():
    code = "import noisin, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert python(code).stdout == f"{SPINS}\n"
    assert python(code, GOMP_SPINCOUNT="5").stdout == "5\n"
    assert python(code, OMP_WAIT_POLICY="active").stdout == "None\n"


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "damaged\n"}, None),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "90000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_a_containers_quota_of_cores_counts(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == (cores or 6)


@pytest.mark.parametrize("hidden, options, cores", [(4, (), 1), (SMALL, (), None), (4, ("--threads", "2"), 2)])
def test_a_run_takes_the_threads_that_its_network_can_use(tmp_path, hidden, options, cores):
    shape = ("--batch-size", "100", "--hidden", hidden, "--epochs", "1", "--quiet", *options)
    result = run([sys.executable, "-m", "noisin", "train", "--run-dir", tmp_path / "run", *shape])
    assert result.returncode == 0, result.stderr
    assert read_json(tmp_path / "run" / "record.json")["hardware"]["threads"] == (cores or usable_cores())


def test_threads_that_the_user_gave_stay(tmp_path):
    shape = ("--batch-size", "100", "--hidden", "4", "--epochs", "1", "--quiet")
    result = run([sys.executable, "-m", "noisin", "train", "--run-dir", tmp_path / "run", *shape], OMP_NUM_THREADS=2)
    assert result.returncode == 0, result.stderr
    assert read_json(tmp_path / "run" / "record.json")["hardware"]["threads"] == 2


def test_how_mxnet_copies_is_for_the_user_to_say():
    code = "import noisin, os; print(os.environ['MXNET_CPU_PARALLEL_SIZE'])"
    assert python(code).stdout == "2147483647\n"
    assert python(code, MXNET_CPU_PARALLEL_SIZE="200000").stdout == "200000\n"


# Prints how often an operation's threads go to sleep, after an array of this many numbers was copied.
SLEEPS = """
import resource, runpy, sys
with runpy.run_path(sys.argv[2])["stand_ins"]():
    import mxnet as mx
import numpy as np
mx.nd.array(np.zeros(int(sys.argv[1]), np.float32)).wait_to_read()
square = mx.nd.ones((256, 256))
def use(times):
    for _ in range(times):
        for _ in range(50):
            product = mx.nd.FullyConnected(square, square, no_bias=True, num_hidden=256)
        product.wait_to_read()
use(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
use(10)
print((resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / 500)
"""


@pytest.mark.skipif(
    usable_cores() < 2,
    reason="on one core MXNet has one thread, which waits for no other: there are no sleeps to count",
)
def test_a_large_copy_does_not_put_the_engines_threads_to_sleep():
    def sleeps(first, size):
        command = [sys.executable, "-c", first + SLEEPS, size, mxnet_import.__file__]
        # With GNU's own patience: ours is short, and sleeps are then no sign of a disturbance.
        return float(run(command, OMP_NUM_THREADS=usable_cores(), GOMP_SPINCOUNT=300_000).stdout)

    assert sleeps("", 10_000_000) > 0.5, "MXNet by itself is not disturbed: this test cannot fail any more"
    assert sleeps("import noisin", 10_000_000) < 0.25


def test_noisin_after_mxnet_leaves_mxnets_threads_and_says_nothing():
    code = "import sys, types; sys.modules['mxnet'] = types.ModuleType('mxnet'); import noisin, os; "
    result = python(code + "print(os.environ.get('OMP_NUM_THREADS'))")
    assert (result.returncode, result.stdout, result.stderr) == (0, "None\n", "")


# Prints what `import noisin` changes in a host process: its hooks and filters, and what C's allocator is asked.
HOST = """
import ctypes, sys, warnings
class Library(ctypes.CDLL):
    def __getattr__(self, name):
        print(name) if name == "mallopt" else None
        return super().__getattr__(name)
ctypes.CDLL = Library
before = sys.excepthook, list(warnings.filters), set(sys.modules)
import noisin
loaded = set(sys.modules) - before[2]
print(before[:2] == (sys.excepthook, list(warnings.filters)), {"mxnet", "numpy", "pandas"} & loaded)
"""


def test_importing_noisin_sets_no_more_than_mxnet_needs():
    assert python(HOST).stdout == "True set()\n"


def test_every_public_name_is_there_when_it_is_used_and_no_sooner():
    code = "import noisin, sys; assert 'mxnet' not in sys.modules; [getattr(noisin, name) for name in noisin.__all__]"
    result = python(code + "; print(set(noisin.__all__) <= set(dir(noisin)), hasattr(noisin, 'nothing'))")
    assert result.stdout == "True False\n", result.stderr


def test_one_version_everywhere():
    result = run([sys.executable, "setup.py", "--version"])
    assert result.stdout.split()[-1:] == [noisin.__version__], result.stderr
    assert f"\nversion: {noisin.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


# ---- the Makefile --------------------------------------------------------------------------------------------------


def make(*arguments, cwd=ROOT, **env):
    return run(["make", *arguments], cwd=cwd, **env)


@pytest.fixture
def clone(tmp_path):
    """Copy the little that make needs, with a make_venv.py that says who ran it; a file `fail` makes it fail."""
    folder = tmp_path / "a clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "tools" / "make_venv.py").write_text(MADE, encoding="utf-8")
    return folder


MADE = """
import os, shutil, sys, time
shutil.rmtree(".venv", ignore_errors=True)
os.makedirs(".venv/bin")
with open(".venv/bin/python", "w") as file:
    file.write("#!/bin/sh\\n" + os.environ.get("ENVIRONMENT", ""))
os.chmod(".venv/bin/python", 0o755)
print("made by", os.environ.get("WHO", "python3"), *sys.argv[1:], flush=True)
time.sleep(float(os.environ.get("SECONDS", 0)))
sys.exit(2 * os.path.exists("fail"))
"""


def python_stub(file):
    """A Python that says what it is called."""
    return stub(file, f'WHO={file.name} exec {sys.executable} "$@"')


def test_the_first_python_from_3_8_to_3_14_makes_the_environment(clone, tmp_path):
    folder = tmp_path / "bin"
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    stub(folder / "python3", "exit 1")  # as one that is too old, or a name that leads nowhere
    for name in ("python3.14", "python3.9"):
        python_stub(folder / name)
    assert "made by python3.14 .venv\n" in make("venv", cwd=clone, PATH=path).stdout
    python_stub(folder / "python3")
    (clone / "setup.py").write_text("# another one")
    assert "made by python3 .venv\n" in make("venv", cwd=clone, PATH=path).stdout


def test_no_usable_python_is_one_line(clone, tmp_path):
    names = ["python3", *(f"python3.{minor}" for minor in range(14, 7, -1))]
    for name in names:
        stub(tmp_path / "bin" / name, "exit 1")
    result = make("venv", cwd=clone, PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert (result.returncode, result.stdout) == (2, "")
    line, rest = result.stderr.split("\n", 1)
    assert line == (
        f"make: no CPython from 3.8 to 3.14 (tried {' '.join(names)}): apt-get install python3 python3-venv "
        "python3-dev, or make PYTHON=/path/to/python3"
    )
    assert rest.startswith("make: ***")


@pytest.mark.parametrize("version, usable", [((3, 7), 0), ((3, 8), 1), ((3, 14), 1), ((3, 15), 0), ((2, 7), 0)])
def test_the_variable_is_taken_or_refused_and_nothing_else_tried(clone, tmp_path, version, usable):
    assert make("venv", cwd=clone).stdout.startswith("made")
    disguise = f"import sys; sys.version_info = {version}; exec(sys.argv[2])"
    mine = stub(
        tmp_path / "my own" / "py",
        f"""[ "$1" = -c ] && exec {sys.executable} -c '{disguise}' "$@"
        WHO=mine exec {sys.executable} "$@" """,
    )
    result = make("venv", f"PYTHON={mine}", cwd=clone)
    assert result.stdout == ("made by mine .venv\n" if usable else "")
    if not usable:
        assert result.returncode == 2
        assert result.stderr.startswith(f"make: no CPython from 3.8 to 3.14 (tried {mine}): ")


def test_another_python_makes_another_environment_and_the_same_does_not(clone):
    same = f'exec {sys.executable} "$@"'  # what the environment's Python says it is
    assert "made" in make("venv", f"PYTHON={sys.executable}", cwd=clone, ENVIRONMENT=same).stdout
    assert "made" not in make("venv", f"PYTHON={sys.executable}", cwd=clone).stdout
    assert "made" not in make("venv", cwd=clone).stdout
    stub(clone / ".venv" / "bin" / "python", "echo another")
    assert "made" not in make("venv", cwd=clone).stdout
    assert "made" in make("venv", f"PYTHON={sys.executable}", cwd=clone).stdout


def test_the_environment_is_made_once_and_again_when_it_is_not_what_is_wanted(clone, tmp_path):
    (clone / "fail").touch()
    assert make("venv", cwd=clone).returncode == 2
    assert make("venv", cwd=clone).stdout.count("made") == 1  # a stopped install is not believed
    (clone / "fail").unlink()
    assert make("venv", cwd=clone).stdout.count("made") == 1
    assert make("venv", "test", "ptb", cwd=clone).stdout.count("made") == 0
    for name in ("setup.py", "constraints.txt"):
        (clone / name).touch()
        assert make("test", cwd=clone).stdout.count("made") == 0
        with open(clone / name, "a", encoding="utf-8") as file:
            file.write("# a change\n")
        assert make("test", cwd=clone).stdout.count("made") == 1
        assert make("test", cwd=clone).stdout.count("made") == 0
    (clone / ".venv" / "bin" / "python").unlink()
    assert make("test", cwd=clone).stdout.count("made") == 1
    copy = tmp_path / "copy"
    shutil.copytree(clone, copy)
    assert make("test", cwd=copy).stdout.count("made") == 1


def test_a_changed_c_file_is_compiled_anew_in_the_same_environment(clone):
    (clone / "src" / "noisin" / "native").mkdir(parents=True)
    source = clone / "src" / "noisin" / "native" / "part.c"
    source.touch()
    assert make("venv", cwd=clone).stdout.count("made") == 1
    python = stub(clone / ".venv" / "bin" / "python", 'echo "$@"')
    assert "build_ext" not in make("test", cwd=clone).stdout
    time.sleep(0.02)  # a file's time is that of the last tick of the clock
    source.touch()
    assert make("test", cwd=clone).stdout.splitlines() == ["setup.py -q build_ext --inplace --force", "-m pytest"]
    assert make("test", cwd=clone).stdout.splitlines() == ["-m pytest"]
    assert python.exists()


def test_two_makes_at_once_make_the_environment_once(clone):
    both = [
        subprocess.Popen(["make", "venv"], cwd=clone, env={**ENV, "SECONDS": "1"}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert "".join(process.communicate(timeout=60)[0] for process in both).count("made") == 1
    assert [process.returncode for process in both] == [0, 0]


def test_clean_spares_corpora_results_and_runs(clone):
    kept = ["data/ptb/ptb.train.txt", "experiments/results/table2/a.json", "runs/__pycache__/a", "src/noisin/noise.py"]
    gone = [".venv/bin/python", "build/lib/a", "src/noisin.egg-info/a", "src/noisin/__pycache__/a", ".ruff_cache/a"]
    for name in kept + gone:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert make("clean", cwd=clone).returncode == 0
    assert [name for name in kept if not (clone / name).exists()] == []
    assert [name for name in gone if (clone / name).exists()] == []


def test_help_is_the_default_and_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))
    assert targets >= {"help", "test", "lint", "clean", "demo", "ptb", "wikitext2"}
    result = make()
    assert result.stdout == make("help").stdout
    assert set(re.findall(r"^  ([a-z][\w-]*)  ", result.stdout, re.MULTILINE)) == targets


def test_narrowing_reaches_the_command_unchanged():
    plain = make("-n", "ptb").stdout.splitlines()[-1]
    assert shlex.split(plain)[1:] == ["-m", "experiments", "figure2"]
    variables = ("METHODS=noisin* it's", "EPOCHS=2", "SEEDS=1,2", "ONLY=layers=2,activation=tanh", "JOBS=2")
    narrowed = make("-n", "wikitext2", *variables, "DTYPE=bfloat16", "ARGS=--quiet").stdout
    assert shlex.split(narrowed.splitlines()[-1])[1:] == [
        *("-m", "experiments", "table3", "--epochs", "2", "--methods", "noisin* it's", "--seeds", "1,2"),
        *("--only", "layers=2,activation=tanh", "--jobs", "2", "--dtype", "bfloat16", "--quiet"),
    ]


def test_a_gpu_gets_an_environment_of_its_own_with_the_gpu_build():
    lines = make("-n", "ptb", "DEVICE=gpu:1").stdout
    assert "tools/make_venv.py .venv-gpu requirements-gpu.txt" in lines
    assert lines.splitlines()[-1] == ".venv-gpu/bin/python -m experiments figure2 --device 'gpu:1'"
    assert "gpu" not in make("-n", "ptb", "DEVICE=cpu").stdout


def test_without_the_driver_nothing_is_downloaded_for_a_gpu(tmp_path):
    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has NVIDIA's driver")
    result = run([sys.executable, MAKE_VENV, tmp_path / "venv", "requirements-gpu.txt"])
    assert result.returncode == 2 and result.stdout == "" and not (tmp_path / "venv").exists()
    assert "(libcuda.so.1): install it" in result.stderr and result.stderr.count("\n") == 1


def test_the_cuda_libraries_that_are_loaded_are_those_that_are_pinned():
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", (ROOT / "requirements-gpu.txt").read_text(), re.MULTILINE))
    assert pinned.pop("mxnet-cu117") == "1.9.1"
    assert set(pinned) == {f"nvidia-{name}-cu11" for name in cuda._CUDA_PACKAGES}


def gpu_build(folder, **libraries):
    """A folder for PYTHONPATH where MXNet's GPU build is installed, and for LD_LIBRARY_PATH, with a driver if given."""
    packages = {"mxnet_cu117": b""}
    if "cudart" in libraries:
        packages["nvidia_cuda_runtime_cu11"] = libraries["cudart"]
    for name, content in packages.items():
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        (info / "RECORD").write_text("nvidia/lib/libcudart.so.11.0,,\n" if content else "")
        if content:
            (folder / "nvidia" / "lib").mkdir(parents=True)
            (folder / "nvidia" / "lib" / "libcudart.so.11.0").write_bytes(content)
    if "driver" in libraries:
        shutil.copy(libraries["driver"], folder / "libcuda.so.1")
    return {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder}", "LD_LIBRARY_PATH": folder}


# Any library will do for the driver's, which is only loaded here.
SOME_LIBRARY = importlib.util.find_spec("_hashlib").origin


@pytest.mark.parametrize(
    "libraries, says",
    [
        ({"driver": SOME_LIBRARY}, "needs nvidia-cuda-runtime-cu11, which is missing or does not load"),
        (
            {"driver": SOME_LIBRARY, "cudart": b"no library"},
            "needs nvidia-cuda-runtime-cu11, which is missing or does not load",
        ),
        ({}, "needs NVIDIA's driver (libcuda.so.1), which is not on this machine"),
    ],
    ids=["missing", "broken", "no driver"],
)
def test_a_gpu_build_that_cannot_load_is_one_line(tmp_path, libraries, says):
    if not libraries and ctypes.util.find_library("cuda"):
        pytest.skip("this machine has NVIDIA's driver")
    result = run([sys.executable, "-m", "noisin", "--version"], **gpu_build(tmp_path, **libraries))
    assert result.returncode == 2
    assert says in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["noisin", "experiments", "benchmarks"])
@pytest.mark.parametrize("threads", ["0", "two", "1,2", "²", "9999", "99999999999"])
def test_a_number_of_threads_that_is_none_is_one_line(threads, module):
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    most = 4 * os.cpu_count()
    assert (
        result.stderr == f"noisin: error: OMP_NUM_THREADS is '{threads}': it must be a whole number from 1 to {most}\n"
    )


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
