"""Runs on a Dask cluster of processes on loopback: the same records as without, whatever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from helpers.processes import ROOT, wait_for
from helpers.records import without_times

from experiments.__main__ import main
from experiments.grid import engines
from experiments.grid.engines import dask_engine, local_engine
from experiments.grid.runner import run_grid
from noisin.config import Config, config_from_dict
from noisin.methods import METHODS

DASK = Path(sysconfig.get_path("scripts")) / "dask"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
LOOPBACK = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
# Epochs enough to be stopped twice in the middle; the second run is the longer one.
GRID = ("demo", "--epochs", "5", "--methods", "none,noisin*")


def start(command, folder, name, **variables):
    """A process whose output goes to `folder`/`name`."""
    with open(folder / name, "w") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**ENVIRONMENT, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def compare(folder, *arguments):
    """`python -m experiments ...` in the folder."""
    return start([sys.executable, "-m", "experiments", *GRID, *arguments], folder, "output")


def trainings(process):
    """The runs that are children of a process, by the name of their directory."""
    try:
        children = psutil.Process(process.pid).children()
        lines = {child: child.cmdline() for child in children if child.status() != psutil.STATUS_ZOMBIE}
    except psutil.NoSuchProcess:
        return {}
    return {Path(line[line.index("--run-dir") + 1]).name: child for child, line in lines.items() if "--run-dir" in line}


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def listening(process):
    """The addresses on which a process takes connections; :: and 0.0.0.0 are all interfaces."""
    connections = psutil.Process(process.pid).net_connections("inet")
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def results(folder):
    """Every record in the folder, without what time and place leave in it."""
    paths = folder.glob("runs/demo/records/*.json")
    return {path.name: without_times(json.loads(path.read_text(encoding="utf-8"))) for path in paths}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of the grid by the thread pool."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = compare(folder, "--jobs", "2")
    assert process.wait(timeout=120) == 0, (folder / "output").read_text()
    return results(folder)


class Cluster:
    """A scheduler and two workers, processes of their own; a worker that is killed is replaced."""

    def __init__(self, folder, deaths):
        self.folder = folder
        file = folder / "scheduler.json"
        command = [DASK, "scheduler", *LOOPBACK, "--port", "0", "--scheduler-file", file]
        self.scheduler = start(command, folder, "scheduler", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=str(deaths))
        wait_for(lambda: file.exists() and file.read_text().endswith("}"))  # there, and written to its end
        self.address = json.loads(file.read_text())["address"]
        self.started = 0
        self.workers = [self._start_worker() for _ in range(2)]

    def _start_worker(self):
        self.started += 1
        command = [DASK, "worker", self.address, *LOOPBACK, "--nthreads", "1", "--no-nanny"]
        return start(command, self.folder, f"worker{self.started}")

    def kill_a_worker(self, index):
        self.workers[index].kill()
        self.workers[index].wait()
        self.workers[index] = self._start_worker()

    def ready(self):
        wait_for(lambda: (self.folder / "scheduler").read_text().count("Starting worker compute stream") == 2)

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path, request):
    """Its scheduler gives a task up when more workers than this number, 3 by default, have died that had it."""
    cluster = Cluster(tmp_path, deaths=getattr(request, "param", 3))
    try:
        cluster.ready()
        yield cluster
    finally:
        cluster.close()


def test_a_local_cluster_makes_the_records_that_threads_make(tmp_path, undisturbed):
    process = compare(tmp_path, "--scheduler", "local", "--jobs", "2")
    output = tmp_path / "output"
    wait_for(lambda: "dashboard" in output.read_text() or process.poll() is not None)
    link = re.search(r"dashboard: (http://127\.0\.0\.1:\d+/status)", output.read_text())
    assert link, output.read_text()
    with urlopen(link[1], timeout=30) as page:
        assert page.status == 200
    assert listening(process) == {"127.0.0.1"}
    assert process.wait(timeout=120) == 0, output.read_text()
    assert results(tmp_path) == undisturbed
    assert re.search(r"^    none 1  epoch   1  train", output.read_text(), re.MULTILINE)


def test_a_grid_that_is_interrupted_and_then_loses_a_worker_has_the_same_records(cluster, tmp_path, undisturbed):
    output = tmp_path / "output"
    assert [listening(part) for part in (cluster.scheduler, *cluster.workers)] == [{"127.0.0.1"}] * 3
    process = compare(tmp_path, "--scheduler", cluster.address)
    wait_for(lambda: list(tmp_path.glob("runs/demo/*noisin-learned*/state.json")))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    _, late = output.read_text().split("interrupted; the same command goes on from the last finished epochs\n")
    assert late == ""
    assert "Traceback" not in output.read_text()
    wait_for(lambda: not any(trainings(worker) for worker in cluster.workers), seconds=15)  # nor does it go on alone

    process = compare(tmp_path, "--scheduler", cluster.address)
    wait_for(lambda: re.search(r"^ noisin\* 1  resuming after epoch", output.read_text(), re.MULTILINE))
    victim, name, training = next(
        (worker, name, training)
        for worker in cluster.workers
        for name, training in trainings(worker).items()
        if "noisin-learned" in name
    )
    victim.send_signal(signal.SIGKILL)
    wait_for(lambda: gone(training), seconds=15)  # the kernel kills it at once; that is seen late on a busy machine
    assert not (tmp_path / "runs" / "demo" / name / "record.json").exists()  # that was in the middle
    assert process.wait(timeout=120) == 0, output.read_text()
    assert len(re.findall(r"^ noisin\* 1  resuming after epoch", output.read_text(), re.MULTILINE)) == 2
    assert len(re.findall(r"^ noisin\* 1  finished: ", output.read_text(), re.MULTILINE)) == 1
    assert results(tmp_path) == undisturbed


# Hardly any training: what is left is what starting, filing and dying cost.
SMALLEST = {"hidden": 4, "batch_size": 200, "unroll": 20, "eval_batch_size": 100, "eval_samples": 1, "gamma": [0.3]}


def kill_now_and_then(cluster, records, every, done, kills):
    """Kill a worker that trains, at a random moment after each `every` records, until `done` is set; note its runs."""
    while not done.wait(random.uniform(0, 1)):
        busy = [(index, sorted(found)) for index, found in enumerate(map(trainings, cluster.workers)) if found]
        if busy and len(list(records.glob("*.json"))) // every > len(kills):
            index, names = random.choice(busy)
            kills.append(names)
            cluster.kill_a_worker(index)


def kill_what_trains(cluster, done, kills):
    """Kill each worker that has begun to train, until `done` is set; note what ran on it."""
    while not done.wait(0.1):
        for index, worker in enumerate(cluster.workers):
            if trainings(worker):
                kills.append(sorted(trainings(worker)))
                cluster.kill_a_worker(index)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "runs, every",
    [(6, 2), pytest.param(500, 5, marks=pytest.mark.load(reason="takes ten minutes; the same is run with 6 runs"))],
)
def test_a_grid_whose_workers_are_killed_at_random_has_each_run_recorded_once(cluster, tmp_path, capsys, runs, every):
    configs = [Config(method=list(METHODS)[n % 4], seed=n // 4, epochs=2, **SMALLEST) for n in range(runs)]
    kills, done, begun = [], threading.Event(), time.monotonic()
    killer = threading.Thread(target=kill_now_and_then, args=(cluster, tmp_path / "records", every, done, kills))
    killer.start()
    try:
        records, _ = run_grid(configs, tmp_path / "runs", tmp_path / "records", dask_engine(cluster.address))
    finally:
        done.set()
        killer.join()
    output = capsys.readouterr().out
    hit = [name for names in kills for name in names]
    with capsys.disabled():
        print(
            f"\n{runs} runs in {time.monotonic() - begun:.0f} s; {len(kills)} workers killed, {len(hit)} of them while "
            f"they had one of {len(set(hit))} runs; {output.count('resuming after epoch')} went on after an epoch"
        )
    assert len(kills) >= runs // every - 2 and set(hit) <= {config.name for config in configs}
    assert [config_from_dict(record["config"]) for record in records] == configs
    assert sorted(path.stem for path in (tmp_path / "records").iterdir()) == sorted(config.name for config in configs)
    # No run was trained to its end twice, and none that was killed has other numbers than one that was left alone.
    ended = re.findall(r"^ *(\S+ \d+)  finished: ", output, re.MULTILINE)
    assert len(ended) == len(set(ended)) > runs / 2
    # What is in its record is not asked for again, but where a worker died before it could say that the run had ended.
    assert output.count("  already finished: ") <= len(kills)
    again = [config for config in configs if config.name in hit][:10]
    undisturbed, _ = run_grid(again, tmp_path / "alone" / "runs", tmp_path / "alone" / "records", local_engine(2))
    for config, alone in zip(again, undisturbed):
        (recorded,) = (record for record in records if record["config"] == config.to_dict())
        assert without_times(alone) == without_times(recorded)


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_run_that_ends_an_epoch_in_each_of_its_lives_is_not_given_up(cluster, tmp_path):
    config = Config(method="noisin", epochs=4, **{**SMALLEST, "batch_size": 10})
    kills = []

    def kill_after_each_epoch(jobs, relay):
        def hear(name, line):
            if line.startswith("epoch ") and len(kills) < 2:
                (index,) = (index for index, worker in enumerate(cluster.workers) if trainings(worker))
                kills.append(line)
                cluster.kill_a_worker(index)
            relay(name, line)

        return dask_engine(cluster.address)(jobs, hear)

    (record,), _ = run_grid([config], tmp_path / "runs", tmp_path / "records", kill_after_each_epoch)
    assert len(kills) == 2 and len(record["epochs"]) == 4


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_run_whose_workers_all_die_is_given_up(cluster, tmp_path, capsys):
    config = Config(method="none", epochs=1, **{**SMALLEST, "batch_size": 1, "unroll": 1})  # an epoch is long
    kills, done = [], threading.Event()
    killer = threading.Thread(target=kill_what_trains, args=(cluster, done, kills))
    killer.start()
    try:
        found = run_grid([config], tmp_path / "runs", tmp_path / "records", dask_engine(cluster.address))
    finally:
        done.set()
        killer.join()
    assert found == ([], [config.name])
    assert "  given up: too many workers have died that had it, and no epoch has ended" in capsys.readouterr().out
    assert len(kills) == 2


def test_no_worker_keeps_a_run_that_has_ended(monkeypatch):
    """Else Dask would have it done again when that worker dies."""
    from distributed import default_client

    monkeypatch.setattr("experiments.grid.engines.run_on_worker", lambda job, topic: {"job": job})
    with contextlib.closing(dask_engine("local")({"a": 1, "b": 2, "c": 3}, print)) as ended:
        first = [next(ended) for _ in range(2)]
        workers = default_client().cluster.scheduler.workers.values()
        wait_for(lambda: sum(len(worker.has_what) for worker in workers) <= 1, seconds=20)  # the third's, at the most
        assert dict([*first, *ended]) == {"a": {"job": 1}, "b": {"job": 2}, "c": {"job": 3}}


def test_no_scheduler_at_the_address_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "_PATIENCE", 1)
    assert main([*GRID, "--scheduler", "tcp://127.0.0.1:9"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("experiments: error: no Dask scheduler at tcp://127.0.0.1:9: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--scheduler", "local"], r"--scheduler needs Dask \(.*\): pip install '\.\[cluster\]'"),
        (["--scheduler", "tcp://127.0.0.1:9", "--jobs", "2"], "--jobs has no effect on a cluster"),
    ],
)
def test_a_mistake_is_one_line_that_needs_no_dask(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if not installed
    monkeypatch.chdir(tmp_path)
    assert main([*GRID, *arguments]) == 2
    errors = capsys.readouterr().err
    assert re.search(says, errors) and errors.count("\n") == 1


def test_a_run_ends_at_once_if_the_process_that_started_it_is_gone():
    command = [sys.executable, "-m", "noisin", "--version"]
    orphan = subprocess.run(command, env={**ENVIRONMENT, "NOISIN_PARENT": "1"}, capture_output=True, text=True)
    assert (orphan.returncode, orphan.stdout, orphan.stderr) == (1, "", "")
