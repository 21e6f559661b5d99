"""The benchmark: what is timed is what it says, and the report is made of the measurements."""

import importlib

import numpy as np
import pytest
from helpers.machine import needs_bfloat16, needs_matplotlib
from matplotlib.image import imread

import benchmarks.__main__
from benchmarks import measure, mxnet_peers, ours, report
from benchmarks.measure import Contender
from benchmarks.report import GROWING
from benchmarks.workloads import GROWTH, WORKLOADS
from noisin.graphs import BFLOAT16

TINY = {"vocabulary": 50, "hidden": 8, "batch_size": 4, "unroll": 5}
MODULES = {"ours": ours, "mxnet_peers": mxnet_peers}
OF_AN_EXTRA = {"torch_peers": "torch", "jax_peer": "jax"}


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=str)
def test_the_limit_has_the_products_that_design_counts(workload):
    size, gates = workload.hidden, workload.gates
    recurrent = workload.layers * 2 * size * gates * size
    forward = sum(2 * times * rows * inner * columns for times, rows, inner, columns, _ in workload.products())
    assert 3 * forward == 6 * workload.words * (size * workload.vocabulary + recurrent)


def test_peers_get_consecutive_segments():
    workload = WORKLOADS["ptb-rnn-256"].changed(TINY)
    batches = workload.batches()
    first, second = next(batches), next(batches)
    for inputs, targets in (first, second):
        assert inputs.shape == targets.shape == (5, 4)
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
    np.testing.assert_array_equal(second[0][0], first[1][-1])


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize(
    "module, name", [(module, name) for module, found in MODULES.items() for name in found.CONTENDERS]
)
def test_every_contender_makes_steps(workload, module, name):
    step = MODULES[module].CONTENDERS[name](WORKLOADS[workload].changed(TINY), "float32")
    for _ in range(3):
        step()
    MODULES[module].finish()


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize(
    "module, name",
    [
        *(("mxnet_peers", name) for name in mxnet_peers.CONTENDERS),
        *(("torch_peers", name) for name in ("pytorch", "pytorch-noise", "pytorch-compiled")),
        ("jax_peer", "jax"),
    ],
)
def test_without_noise_all_do_the_same_work(workload, module, name, monkeypatch):
    """From the same weights, ours and every peer have the same losses for fifty steps, which end where they began."""
    if module in OF_AN_EXTRA:
        pytest.importorskip(OF_AN_EXTRA[module], reason="an extra that only `make bench` uses: pip install '.[peers]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    setting = WORKLOADS[workload].changed({**TINY, "gamma": 0.0})
    theirs = importlib.import_module(f"benchmarks.{module}").CONTENDERS[name](setting, "float32")
    step = ours.CONTENDERS["noisin"](setting, "float32")
    losses = np.array([(float(step()), number(theirs())) for _ in range(50)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)
    assert losses[:5].mean() - losses[-5:].mean() > 0.05


def number(loss):
    return float(loss.asscalar() if hasattr(loss, "asscalar") else loss)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "module, name", [("torch_peers", "pytorch"), ("torch_peers", "pytorch-noise"), ("jax_peer", "jax")]
)
def test_peers_of_an_extra_make_steps_in_both_dtypes(monkeypatch, module, name, dtype):
    pytest.importorskip(OF_AN_EXTRA[module], reason="an extra that only `make bench` uses: pip install '.[peers]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    step = importlib.import_module(f"benchmarks.{module}").CONTENDERS[name](
        WORKLOADS["wikitext2-lstm-200"].changed(TINY), dtype
    )
    assert 0 < number(step()) < 5


def test_a_contender_that_is_killed_in_the_middle_is_left_out(monkeypatch, capfd):
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.02)
    round_ = measure._Turns.round

    def killed(turn):
        if turn.contender.name == "none":
            turn._processes[0]._process.kill()
        round_(turn)

    monkeypatch.setattr(measure._Turns, "round", killed)
    contenders = [Contender(name, "float32", "ours", change=TINY) for name in ("none", "noisin")]
    (left,) = measure.measure("ptb-rnn-256", contenders, rounds=2)
    assert (left["name"], left["rounds"]) == ("noisin", 2)
    assert "none in float32 left out: it was killed" in capfd.readouterr().err


def test_measuring_interleaves_and_leaves_out_what_fails(monkeypatch, capfd):
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.02)
    here = np.ones(2**26)  # 512 MiB, which are not the contenders'
    contenders = [
        Contender("noisin", "float32", "ours", change=TINY),
        Contender("noisin-2x1", "float32", "ours", made_by="noisin", change=TINY, processes=2),
        Contender("absent", "float32", "ours", change=TINY),
    ]
    one, two = measure.measure("ptb-rnn-256", contenders, rounds=3)
    assert "absent in float32 left out: KeyError: 'absent'" in capfd.readouterr().err
    for entry, name, processes in ((one, "noisin", 1), (two, "noisin-2x1", 2)):
        assert (entry["name"], entry["rounds"], entry["hidden"]) == (name, 3, 8)
        assert 0 < entry["min"] <= entry["words_per_second"] <= entry["max"]
        assert 50 < entry["peak_mib"] / processes < 450 < here.nbytes / 2**20


def test_a_contender_gets_its_environment(capfd):
    contender = Contender("noisin", "float32", "ours", change=TINY, environment={"OMP_NUM_THREADS": "none"})
    assert measure.measure("ptb-rnn-256", [contender], rounds=1) == []
    assert "left out: ImportError: OMP_NUM_THREADS is 'none'" in capfd.readouterr().err


@needs_bfloat16
@pytest.mark.parametrize("name", ours.CONTENDERS)
def test_each_of_ours_makes_steps_in_bfloat16(name):
    step = ours.CONTENDERS[name](WORKLOADS["ptb-rnn-256"].changed(TINY), "bfloat16")
    for _ in range(3):
        step()
    ours.finish()


@needs_bfloat16
def test_the_peers_make_steps_in_bfloat16(monkeypatch):
    """In processes of their own: for them it is a setting of the whole process."""
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.02)
    contenders = [Contender(name, "bfloat16", "mxnet_peers", change=TINY) for name in mxnet_peers.CONTENDERS]
    found = measure.measure("ptb-rnn-256", contenders, rounds=1)
    assert [entry["name"] for entry in found] == [contender.name for contender in contenders]


@needs_bfloat16
def test_the_limits_decoder_alone_has_operands_in_bfloat16(monkeypatch):
    multiply, seen = ours.mx.nd.FullyConnected, []

    def watched(left, right, **options):
        seen.append((left.shape, right.shape, left.dtype == right.dtype == BFLOAT16))
        return multiply(left, right, **options)

    monkeypatch.setattr(ours.mx.nd, "FullyConnected", watched)
    ours.limit(WORKLOADS["ptb-rnn-256"].changed(TINY), "bfloat16")
    assert {half for *shapes, half in seen if 50 in sum(shapes, ())} == {True}
    assert {half for *shapes, half in seen if 50 not in sum(shapes, ())} == {False}


def test_what_is_timed_as_ours_is_what_its_name_says(monkeypatch):
    configs = {}
    monkeypatch.setattr(ours, "TrainingStep", lambda model, config, device: configs.setdefault(name, config))
    for name in ("none", "dropout", "noisin", "noisin*", "noisin-s4"):
        ours.CONTENDERS[name](WORKLOADS["wikitext2-lstm-200"].changed(TINY), "bfloat16")
    assert {name: config.method for name, config in configs.items()} == {
        **{method: method for method in ("none", "dropout", "noisin", "noisin*")},
        "noisin-s4": "noisin",
    }
    assert [configs[name].samples for name in ("noisin", "noisin*", "noisin-s4")] == [1, 1, 4]
    assert {(config.cell, config.optimizer, config.dtype) for config in configs.values()} == {
        ("lstm", "sgd", "bfloat16")
    }


@pytest.mark.parametrize("lost", ["limit", "none"])
def test_without_what_the_others_are_compared_with_nothing_is_written(tmp_path, monkeypatch, capsys, lost):
    left = [{"name": name} for name in ("limit", "none", "noisin") if name != lost]
    monkeypatch.setattr(benchmarks.__main__, "measure", lambda *_: left)
    assert benchmarks.__main__.main(["--out", str(tmp_path)]) == 2
    assert f"ptb-rnn-256: {lost} in float32 could not be timed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def measurement(name, rate, dtype="float32", **change):
    entry = {"workload": "ptb-rnn-256", "name": name, "dtype": dtype, "words_per_second": rate, "peak_mib": 400.0}
    return {**entry, "min": rate - 1, "max": rate + 1, "rounds": 3, "rates": [rate, rate - 1, rate + 1], **change}


RESULTS = {
    "measurements": [
        measurement("limit", 100.0),
        measurement("none", 80.0),
        measurement("noisin", 64.0),
        measurement("noisin-s4", 20.0),
        measurement("plain-cell", 16.0),
        measurement("jax", 32.0, warm_up_seconds=4.4),
        measurement("limit", 200.0, "bfloat16"),
        measurement("none", 100.0, "bfloat16"),
        measurement("noisin", 100.0, "bfloat16"),
    ],
    "growth": [
        measurement(name, 100.0 * value, **{dimension: value})
        for dimension in GROWTH
        for name in GROWING[dimension]
        for value in (1, 2)
    ],
}


def test_ratios_are_of_one_round_and_leave_out_what_was_not_measured():
    found = {
        (row.figure, row.dtype): (float(row.median), row.rounds)
        for row in report.ratios(RESULTS, "ptb-rnn-256").itertuples(index=False)
    }
    assert found == {
        ("NOISIN / matrix products alone", "float32"): (0.64, "0.64 to 0.64"),
        ("NOISIN / fastest peer with noise (JAX, noise)", "float32"): (2.0, "1.97 to 2.03"),
        ("time of NOISIN / None", "float32"): (1.25, "1.25 to 1.25"),
        ("time of S = 4 / S = 1", "float32"): (3.2, "3.10 to 3.32"),
        ("NOISIN / matrix products alone", "bfloat16"): (0.5, "0.50 to 0.50"),
        ("time of NOISIN / None", "bfloat16"): (1.0, "1.00 to 1.00"),
    }
    # The machine was slow in one round: both were.
    slow = [measurement("limit", 100.0, rates=[100.0, 50.0]), measurement("none", 80.0, rates=[80.0, 40.0])]
    assert report.relative_rates({"measurements": slow}, "ptb-rnn-256", "float32", "none", "limit") == [0.8, 0.8]
    assert report.ratios(RESULTS, "wikitext2-lstm-200").empty


def test_a_goal_is_judged_before_rounding():
    nearly = {"measurements": [measurement("limit", 1000.0), measurement("noisin", 919.0)]}
    row = report.ratios(nearly, "ptb-rnn-256").iloc[0]
    assert list(row[["median", "goal", "met"]]) == ["0.92", ">= 0.92", "no"]
    assert list(report.ratios(RESULTS, "ptb-rnn-256")["met"]) == ["no", "yes", "no", "yes", "no", "yes"]


def test_the_table_has_a_row_for_each_contender_in_both_dtypes():
    frame = report.table(RESULTS, "ptb-rnn-256").set_index("")
    assert list(frame.index) == [
        *("matrix products alone", "None", "NOISIN", "NOISIN, S = 4", "plain Gluon cells, noise", "JAX, noise")
    ]
    assert list(frame.loc["matrix products alone"]) == ["100 (99 to 101)", "400", "200 (199 to 201)", "400"]
    assert list(frame.loc["JAX, noise"]) == ["32 (31 to 33)", "400", "-", "-"]
    assert "three steps: JAX, noise 4 s (float32)." in report.sections(RESULTS)[0]


def test_the_figures_show_the_measurements(tmp_path, drawn):
    report.draw(RESULTS, tmp_path)
    bars, _ = drawn[0].axes
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == list(report.table(RESULTS, "ptb-rnn-256")[""])[::-1]
    assert [bar.get_width() for bar in bars.patches] == [32.0, 16.0, 20.0, 64.0, 80.0, 100.0]
    growth = drawn[1].axes
    assert len(growth) == 2 * len(GROWTH)
    for left, right, name in zip(growth[::2], growth[1::2], GROWTH):
        times = [report.step_milliseconds(entry) for entry in RESULTS["growth"] if name in entry]
        assert [y for line in left.get_lines() for y in line.get_ydata()] == times
        assert [list(line.get_xdata()) for line in left.get_lines()] == [[1, 2]] * len(GROWING[name])
        assert {y for line in right.get_lines() for y in line.get_ydata()} == {400.0}
        assert (left.get_xlabel(), left.get_ylabel()) == (report.DIMENSIONS[name], "time per step (ms)")
        assert right.get_ylabel() == "peak memory (MiB)"
    drawn[1].draw_without_rendering()
    memory, time = (axes.yaxis.label.get_window_extent() for axes in growth[1:3])
    assert time.x0 - memory.x1 > 40  # or the label of one panel seems to be of the next


@needs_matplotlib
def test_the_committed_figures_are_of_the_committed_measurements(tmp_path):
    report.draw(report.read_results(report.HERE / "results.json"), tmp_path)
    for name in (report.SPEED_PICTURE, report.GROWTH_PICTURE):
        np.testing.assert_array_equal(imread(tmp_path / name), imread(report.HERE / name))


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(benchmarks.__main__, "_measure_all", None)  # any measurement would fail
    assert benchmarks.__main__.main(["--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks: error: ") and error.count("\n") == 1


def test_a_growth_measurement_counts_the_words_of_its_own_size():
    entry = measurement("noisin", 1000.0, batch_size=8)
    assert report.step_milliseconds(entry) == pytest.approx(8 * 35)
