"""What is set and checked before MXNet is imported: threads, the GPU's libraries, what a host process keeps."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest
from helpers.processes import ROOT, python, run

import noisin
from noisin.commands import train as command
from noisin.config import Config
from noisin.runs.directory import RunDirectory
from noisin.runs.formats import Progress
from noisin.system import cuda, mxnet_import, startup, threads
from noisin.system.files import read_json
from noisin.system.threads import SMALL, SPINS, idle_cores, usable_cores


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


@pytest.mark.parametrize("busy, idle", [([0, 0, 0], 3), ([20, 0, 0], 2), ([20, 9, 12], 1), ([20, 20, 20], 1)])
def test_cores_that_others_keep_busy_do_not_count(tmp_path, monkeypatch, busy, idle):
    """Of each core 20 ticks pass, so many of them busy; the fourth is not ours."""

    def write(user, idle):
        lines = [f"cpu{n} {user[n]} 0 0 {idle[n]} 0 0 0 0 0 0" for n in range(4)]
        (tmp_path / "stat").write_text("\n".join(["cpu  1 2 3 4", *lines, "intr 5", ""]))

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    write([50] * 4, [70] * 4)
    after = [[50 + ticks for ticks in busy] + [50], [90 - ticks for ticks in busy] + [90]]
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: write(*after))
    assert idle_cores(tmp_path / "stat") == min(idle, usable_cores())
    assert idle_cores(tmp_path / "no such file") == usable_cores()


@pytest.mark.parametrize("module", ["noisin", "experiments"])
def test_too_little_address_space_is_one_line(module):
    limited = f"ulimit -v 900000; OMP_NUM_THREADS=2 exec {shlex.quote(sys.executable)} -m {module} --help"
    result = run(["sh", "-c", limited])
    says = (
        "this process may use 878 MiB of address space, and MXNet needs 1344 MiB for 2 of its threads: raise the limit "
        "(ulimit -v), or lower OMP_NUM_THREADS"
    )
    assert (result.returncode, result.stderr) == (2, f"noisin: error: {says}\n")


def test_a_library_says_too_that_it_has_too_little_address_space():
    """There, importing MXNet would wait for ever."""
    result = run(["sh", "-c", f"ulimit -v 500000; {shlex.quote(sys.executable)} -c 'import noisin'"])
    assert result.returncode == 1
    assert "ImportError: this process may use 488 MiB of address space" in result.stderr.splitlines()[-1]


def test_too_few_threads_are_one_line(monkeypatch):
    """As where a container allows so many processes and no more."""
    started = []

    def start(self):
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ImportError, match="allows this process no more threads"):
        startup.check_thread_limit()


def trained_with(folder, hidden, *options, **env):
    """Count the threads that the record of a short training names."""
    text = folder / "text.txt"
    text.write_text("one two three four\n" * 100, encoding="utf-8")
    shape = ("--corpus", text, "--batch-size", "5", "--hidden", hidden, "--epochs", "1", "--quiet", *options)
    command = [sys.executable, "-m", "noisin", "train", "--run-dir", folder / "run", *shape]
    result = run(command, OMP_WAIT_POLICY="passive", **env)
    assert result.returncode == 0, result.stderr
    return read_json(folder / "run" / "record.json")["hardware"]["threads"]


def test_a_small_network_takes_one_thread(tmp_path):
    assert trained_with(tmp_path, SMALL - 1) == 1


@pytest.mark.parametrize("hidden, idle, taken", [(SMALL, 3, 3), (SMALL, 9, 4), (SMALL, 1, 1), (SMALL - 1, 3, 1)])
def test_a_large_network_takes_the_idle_cores(tmp_path, monkeypatch, hidden, idle, taken):
    monkeypatch.setattr(command, "threads_were_chosen", lambda: True)
    monkeypatch.setattr(command, "threads", lambda: 4)
    monkeypatch.setattr(command, "idle_cores", lambda: idle)
    assert command._chosen_threads(Config(hidden=hidden), RunDirectory(tmp_path)) == taken


def test_a_run_goes_on_with_the_threads_it_was_begun_with(tmp_path):
    assert trained_with(tmp_path, 4, "--threads", "2") == 2
    assert trained_with(tmp_path, 4, "--epochs", "2") == 2
    assert trained_with(tmp_path, 4, "--epochs", "3", "--threads", "1") == [2, 1]


def test_a_run_of_a_larger_machine_takes_as_many_threads_as_this_one_has(tmp_path, monkeypatch):
    progress = Progress(origins=[{"hardware": {"threads": 64}}])
    monkeypatch.setattr(command, "threads_were_chosen", lambda: True)
    monkeypatch.setattr(RunDirectory, "load", lambda self: progress)
    monkeypatch.setattr(command, "most_threads", lambda: 8)
    assert command._chosen_threads(Config(), RunDirectory(tmp_path)) == 8


def test_threads_that_the_user_gave_stay(tmp_path):
    assert trained_with(tmp_path, 4, OMP_NUM_THREADS=2) == 2


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


@pytest.mark.alone
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
