"""Exported networks predict what MXNet predicts with the noise off."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from helpers.commands import refused
from helpers.models import CELLS, make_language_model
from helpers.processes import ROOT, file_size_limit
from mxnet import autograd
from mxnet.gluon import rnn

import noisin
from noisin import cells, methods
from noisin.commands.main import main
from noisin.config import Config
from noisin.data.encoding import END
from noisin.model import make_model
from noisin.runs.directory import RunDirectory
from noisin.sampling import sample_words
from noisin.system.errors import UserError

onnx = pytest.importorskip("onnx", reason="onnx is an extra: pip install '.[onnx]' in noisin's folder")
from noisin import export  # noqa: E402

WORDS = ["<unk>", END, "a", "b", "c", "d", "e"]
METHODS = ["none", "dropout", "noisin", "noisin*", "dropout+noisin*", "standard-dropout"]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
ONNX_EXAMPLE, PYTORCH_EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def runtime(monkeypatch):
    """ONNX Runtime with one thread: by default it has one pinned to each core, whoever works there."""
    reason = "onnxruntime runs what was exported: pip install onnxruntime"
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = partial(onnxruntime.InferenceSession, sess_options=options, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return onnxruntime


def exported(**options):
    """A model whose weights and biases are not zero, and its ONNX file."""
    options = {"cell": "rnn", "activation": "sigmoid", "layers": 2, "hidden": 5, "embedding": 4, **options}
    model = make_language_model(len(WORDS), **options)
    return model, export.to_onnx(model, Config(**options), WORDS)


def run_onnx(session, tokens, states):
    """Log-probabilities and next states of an exported network."""
    names = [f"state_{number}" for number in range(len(states))]
    assert [given.name for given in session.get_inputs()] == ["tokens", *names]
    wanted = ["log_probabilities", *(f"next_{name}" for name in names)]
    log_probabilities, *states = session.run(wanted, {"tokens": tokens, **dict(zip(names, states))})
    return log_probabilities, states


def run_mxnet(model, tokens, states):
    """The same by MXNet in predict mode; `states` has no masks of dropout."""
    begin = model.begin_state(tokens.shape[1])
    places = [place for place, state in enumerate(begin) if not state.asnumpy().any()]  # others are masks
    for place, state in zip(places, states):
        begin[place] = mx.nd.array(state)
    with autograd.predict_mode():
        logits, after = model.unroll(len(tokens), mx.nd.array(tokens), begin)
    log_probabilities = mx.nd.log_softmax(logits).asnumpy().reshape(*tokens.shape, -1)
    return log_probabilities, [after[place].asnumpy() for place in places]


def draw(length, batch_size, states):
    """Tokens (length, batch_size) and states that are not zero."""
    shape = (batch_size, 5)
    return (
        np.random.randint(len(WORDS), size=(length, batch_size)),
        [np.random.uniform(-0.8, 0.8, shape).astype(np.float32) for _ in range(states)],
    )


def assert_equal(found, expected):
    """Log-probabilities and states agree to 1e-5."""
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    assert len(found[1]) == len(expected[1])
    for one, other in zip(found[1], expected[1]):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def number_of_states(cell, layers):
    return layers * (2 if cell == "lstm" else 1)


@pytest.mark.parametrize("decoder", ["own", "tied"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell, activation", CELLS)
def test_an_exported_network_predicts_what_mxnet_predicts_without_noise(
    runtime, cell, activation, method, layers, decoder
):
    options = {"input_gamma": 0.3} if "noisin" in method else {}
    embedding = 4 if decoder == "own" else 0
    model, content = exported(
        cell=cell, activation=activation, method=method, layers=layers, decoder=decoder, embedding=embedding, **options
    )
    onnx.checker.check_model(content, full_check=True)
    session = runtime.InferenceSession(content)
    for length, batch_size in ((4, 3), (1, 2), (3, 1)):
        tokens, states = draw(length, batch_size, number_of_states(cell, layers))
        assert_equal(run_onnx(session, tokens, states), run_mxnet(model, tokens, states))


@pytest.mark.parametrize("cell, activation", CELLS)
def test_states_carried_over_calls_equal_one_longer_call(runtime, cell, activation):
    _, content = exported(cell=cell, activation=activation)
    session = runtime.InferenceSession(content)
    tokens, states = draw(6, 3, number_of_states(cell, 2))
    whole, end = run_onnx(session, tokens, states)
    parts = []
    for part in (tokens[:1], tokens[1:4], tokens[4:]):
        log_probabilities, states = run_onnx(session, part, states)
        parts.append(log_probabilities)
    assert_equal((np.concatenate(parts), states), (whole, end))


def test_a_method_of_ones_own_is_exported_too(runtime, monkeypatch):
    zoneout = methods.Regulariser((), lambda cell, *_: rnn.ZoneoutCell(cell, zoneout_states=0.1), lambda _: "")
    monkeypatch.setitem(methods.METHODS, "zoneout", methods.Method("zoneout", "", ("", "", ""), (zoneout,)))
    model, content = exported(method="zoneout", cell="gru")
    tokens, states = draw(1, 3, 2)
    assert_equal(run_onnx(runtime.InferenceSession(content), tokens, states), run_mxnet(model, tokens, states))


def test_every_cell_has_an_operator():
    assert set(export.OPERATORS) == set(cells.CELLS)


def test_a_tied_matrix_is_written_once():
    own, tied = (onnx.load_from_string(exported(decoder=d, embedding=0)[1]).graph.initializer for d in ("own", "tied"))
    assert {one.name for one in own} - {one.name for one in tied} == {"decoder_weight"}


def test_a_model_that_no_file_holds_is_refused(monkeypatch):
    monkeypatch.setattr(export, "LARGEST", 100)
    with pytest.raises(UserError, match="the model has 777 bytes, an ONNX file at most 100: train a smaller one"):
        exported()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the page has it, with a small run of a two-layer LSTM on a text of one's own, and model.onnx."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text("one two three four\nfive six seven\n" * 100, encoding="utf-8")
    options = "--cell lstm --layers 2 --hidden 16 --epochs 2 --learning-rate 0.03 --batch-size 4 --unroll 10 --quiet"
    arguments = ["--corpus", str(folder / "text.txt"), "--method", "noisin", *options.split()]
    run = str(folder / "runs" / "NAME-OF-THE-RUN")
    assert main(["train", "--run-dir", run, *arguments]) == 0
    assert main(["export", run, str(folder / "model.onnx")]) == 0
    return folder


@pytest.fixture
def trained(folder):
    """The model of the run, and its words."""
    directory = RunDirectory(folder / "runs" / "NAME-OF-THE-RUN")
    words = directory.read_vocabulary()
    model = make_model(directory.read_config(), len(words))
    model.initialize()
    directory.load_best_weights(model)
    return model, words


def test_the_file_says_what_it_was_made_of(folder, trained):
    model = onnx.load(str(folder / "model.onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["vocabulary"].split("\n") == trained[1]
    assert (metadata["noisin_version"], metadata["corpus"]) == (noisin.__version__, "text.txt")


def test_the_onnx_example_of_the_page_writes_the_likeliest_text(folder, trained, runtime, monkeypatch):
    monkeypatch.chdir(folder)
    scope = {}
    exec(ONNX_EXAMPLE, scope)
    model, words = trained
    ids = itertools.islice(sample_words(model, [words.index(END)], temperature=0), 19)
    assert scope["text"] == [END, *(words[i] for i in ids)]
    assert len(set(scope["text"])) > 3


def test_the_pytorch_example_of_the_page_predicts_what_mxnet_predicts(folder, trained, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    monkeypatch.chdir(folder)
    scope = {}
    exec(PYTORCH_EXAMPLE, scope)
    model, words = trained
    tokens = np.random.randint(len(words), size=(6, 3))
    with torch.no_grad():
        first, states = scope["log_probabilities"](torch.tensor(tokens[:4]))
        second, _ = scope["log_probabilities"](torch.tensor(tokens[4:]), states)
    expected, _ = run_mxnet(model, tokens, [np.zeros((3, 16), np.float32)] * 4)
    np.testing.assert_allclose(np.concatenate([first, second]), expected, rtol=0, atol=1e-5)


def test_a_missing_file_to_write_is_said(folder, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(folder / "runs" / "NAME-OF-THE-RUN")])
    assert "NAME-OF-THE-RUN' is a run: name the file to write behind it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", ".", "folder", "folder/..", "pipe", "/"])
def test_only_a_file_is_replaced(folder, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    line = refused(capsys, "export", folder / "runs" / "NAME-OF-THE-RUN", name)
    assert f"cannot write {Path(name)}: it is not a regular file; name another one" in line
    assert sorted(os.listdir()) == ["folder", "pipe"]


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_what_was_there(folder, tmp_path, capsys):
    (tmp_path / "file.onnx").write_bytes(b"before")
    run = folder / "runs" / "NAME-OF-THE-RUN"
    with file_size_limit(100):
        assert f"cannot write {tmp_path}/file.onnx: File too large" in refused(
            capsys, "export", run, tmp_path / "file.onnx"
        )
    below = tmp_path / "file.onnx" / "model.onnx"
    assert f"cannot write {below}: there is no folder {below.parent}" in refused(capsys, "export", run, below)
    assert "File name too long" in refused(capsys, "export", run, tmp_path / (300 * "x" + ".onnx"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file.onnx", b"before")]


def test_no_file_of_a_run_is_overwritten(folder, capsys):
    run = folder / "runs" / "NAME-OF-THE-RUN"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for name in before:
        assert "name a file that ends in .onnx" in refused(capsys, "export", run, run / name)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_run_that_cannot_be_exported_is_one_line(folder, tmp_path, capsys):
    to = tmp_path / "model.onnx"
    assert "nowhere does not exist" in refused(capsys, "export", tmp_path / "nowhere", to)
    run = tmp_path / "run"
    shutil.copytree(folder / "runs" / "NAME-OF-THE-RUN", run)
    (weights,) = run.glob("best-*.safetensors")
    weights.unlink()
    assert f"{weights} is missing" in refused(capsys, "export", run, to)
    (run / "state.json").unlink()
    assert f"{run / 'state.json'} is missing" in refused(capsys, "export", run, to)
    (run / "record.json").unlink()
    assert f"{run} has no finished epoch: train it first" in refused(capsys, "export", run, to)
    absent = tmp_path / "absent" / "model.onnx"
    assert f"there is no folder {absent.parent}; make it, or name another one" in refused(capsys, "export", run, absent)
    assert not absent.parent.exists()
    assert not to.exists()


def test_export_without_onnx_is_one_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "noisin.export")
    monkeypatch.setitem(sys.modules, "onnx", None)
    line = refused(capsys, "export", folder / "runs" / "NAME-OF-THE-RUN", tmp_path / "model.onnx")
    assert "export needs onnx (" in line and "pip install '.[onnx]' in noisin's folder" in line
