"""What all tests share: where the real corpora are, and a seed that can be replayed."""

from __future__ import annotations

import os
import random
import signal
import zlib
from pathlib import Path
from typing import Any, Iterator, List

import numpy as np
import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Beside others, each with a core. Not as a default: the process that starts them has imported noisin too, and with
    # the number that it has set they take five times as long.
    os.environ["OMP_NUM_THREADS"] = "1"
import noisin  # noqa: E402, F401  (before mxnet: it sets the number of threads)
from noisin.system.threads import usable_cores  # noqa: E402

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
if SHARED_DATA.is_dir():
    os.environ.setdefault("NOISIN_DATA", str(SHARED_DATA))

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples follow from the test alone: a failure seen once is seen again.
settings.register_profile("noisin", deadline=None, derandomize=True)
settings.load_profile("noisin")


def _seed(item: pytest.Item) -> int:
    """Return the number a test is seeded with: NOISIN_TEST_SEED, or one that depends on its name alone."""
    return int(os.environ.get("NOISIN_TEST_SEED") or zlib.crc32(item.nodeid.encode()))


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    """Leave out the tests of load, and say so, unless `-m` names them."""
    if "load" not in config.option.markexpr:
        for item in items:
            load = item.get_closest_marker("load")
            if load:
                # Each test says what it takes, and which small one is run in its place.
                item.add_marker(pytest.mark.skip(reason=f"{load.kwargs['reason']}; -m load runs this one"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` means: one for each core that may be used."""
    return usable_cores()


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seed Python, numpy and mxnet before every test; the value is the seed."""
    import mxnet as mx

    number = _seed(request.node)
    random.seed(number)
    np.random.seed(number)
    mx.random.seed(number % 2**31)  # mxnet takes a signed 32-bit integer
    return number


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Print the seed of a test that failed."""
    report = (yield).get_result()  # type: ignore[attr-defined]
    if report.failed:
        report.sections.append(("seed", f"NOISIN_TEST_SEED={_seed(item)} replays this test"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> List[Any]:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    found: List[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *rest, **options: found.append(self) or save(self, *rest, **options)
    )
    return found
