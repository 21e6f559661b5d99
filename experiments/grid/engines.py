"""Where runs are run: processes of this machine, or the workers of a Dask cluster.

An engine is given jobs by name, and somewhere to relay the lines of their runs; it yields each name with the record of
its run, or None if the run failed, as they end. Closing it stops the runs that are at work.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import uuid
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterator, Mapping, Optional, Set, Tuple

from noisin.system.errors import UserError
from noisin.system.files import is_locked
from noisin.system.process import Job, run, run_on_worker

Record = Dict[str, Any]
Relay = Callable[[str, str], None]
Ended = Generator[Tuple[str, Optional[Record]], None, None]
Engine = Callable[[Mapping[str, Job], Relay], Ended]

# Seconds to wait for a scheduler.
_PATIENCE = 10


def local_engine(jobs: int = 1) -> Engine:
    """Runs side by side, `jobs` of them at a time; a single one has the terminal."""
    return partial(_on_threads, jobs)


def dask_engine(address: str, jobs: int = 1) -> Engine:
    """Runs as tasks of Dask: a worker that dies is replaced, and the run goes on from its checkpoint.

    Parameters
    ----------
    address : str
        Of a running scheduler, as tcp://host:port; or 'local' for workers in this process.
    jobs : int, default 1
        Workers of a local cluster.

    Raises
    ------
    UserError
        If Dask is not installed; from the engine, if there is no scheduler at the address.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UserError(f"--scheduler needs Dask ({error}): pip install '.[cluster]' in noisin's folder") from None
    return partial(_on_dask, address, jobs)


def _on_threads(jobs: int, work: Mapping[str, Job], relay: Relay) -> Ended:
    stopping, choosing, left = threading.Event(), threading.Lock(), dict(work)

    def run_one() -> Tuple[str, Optional[Record]]:
        with choosing:  # what another grid trains now comes last, so that two grids share their work
            name = min(left, key=lambda name: is_locked(Path(left[name].directory) / "lock"))
            job = left.pop(name)
        return name, run(job, None if jobs == 1 else partial(relay, name), stopping.is_set)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(run_one) for _ in work]):
                yield future.result()
        finally:
            stopping.set()


def _on_dask(address: str, jobs: int, work: Mapping[str, Job], relay: Relay) -> Ended:
    from distributed import as_completed

    topic = f"noisin-{uuid.uuid4().hex}"
    retried: Set[str] = set()  # runs that Dask has given up, none of them since its last whole epoch

    def hear(event: Any) -> None:
        name, line = event[1]
        if line.startswith("epoch "):
            retried.discard(name)
        relay(name, line)

    with _connected(address, jobs) as client:

        def submit(name: str) -> Any:
            # A key of its own: a task that was left behind is not this one.
            key = f"train-{name}-{uuid.uuid4().hex}"
            return client.submit(run_on_worker, work[name], topic, key=key, pure=False)

        client.subscribe_topic(topic, hear)
        names = {submit(name): name for name in work}
        ended = as_completed(list(names))
        for future in ended:
            name = names.pop(future)
            # Dask counts a death against every task that the worker had, those too that only waited for their turn,
            # and never forgets one: so a run has a second chance, and another one after each epoch.
            if _workers_died(future) and name not in retried:
                retried.add(name)
                again = submit(name)
                names[again] = name
                ended.add(again)
                continue
            record = _result(future, partial(relay, name))
            future.release()  # else, when the worker that did it dies, Dask has it done again
            yield name, record


def _workers_died(future: Any) -> bool:
    """Whether Dask has given a task up because too many workers died that had it."""
    from distributed import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _result(future: Any, say: Callable[[str], None]) -> Optional[Record]:
    """The record of a task that has ended, or None where the task, not its run, has failed."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        say("given up: too many workers have died that had it, and no epoch has ended meanwhile")
    except concurrent.futures.CancelledError:
        say("given up: the scheduler is gone, or has dropped the run")
    except Exception as error:  # whatever the worker could not do, as importing noisin
        say(f"given up: {type(error).__name__}: {error}")
    return None


@contextlib.contextmanager
def _connected(address: str, jobs: int) -> Iterator[Any]:
    """A client of the scheduler, with a line that says where the cluster can be watched."""
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):  # Dask gives each a level and a handler
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said in one line
    with contextlib.ExitStack() as stack:
        scheduler: Any = address
        if address == "local":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Port 8787 is already in use", UserWarning)
                # Workers in this process: each task is a process anyway. Nothing here listens beyond loopback; workers
                # have pages of their own, whose default is all interfaces.
                cluster = LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,
                    processes=False,
                    dashboard_address="127.0.0.1:8787",
                    worker_dashboard_address="127.0.0.1:0",
                )
            scheduler = stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(scheduler, timeout=_PATIENCE))
        except (OSError, ValueError, TypeError) as error:  # the last for tls:// without its certificates
            reason = " ".join(str(error).split())
            raise UserError(f"no Dask scheduler at {address}: {reason}; give local, or tcp://host:port") from None
        print(_description(client, address), flush=True)
        yield client


def _description(client: Any, address: str) -> str:
    cluster = client.scheduler_info()
    workers, dashboard = len(cluster["workers"]), client.dashboard_link or "none"
    if address == "local":  # the link would name an interface that it does not listen on
        dashboard = f"http://127.0.0.1:{cluster['services']['dashboard']}/status"
    waiting = "" if workers else " (runs begin when one joins)"
    return f"Dask scheduler {address}; workers: {workers}{waiting}; dashboard: {dashboard}"
