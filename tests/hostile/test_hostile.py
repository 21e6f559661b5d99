"""Files that somebody crafted: one line or a valid result, in bounded time and memory, and nothing is run."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc

import mxnet as mx
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noisin.commands.main import main
from noisin.data.corpus import load_corpus
from noisin.runs.directory import RunDirectory
from noisin.runs.formats import seal
from noisin.system.errors import UserError
from noisin.system.files import MAX_JSON, hold_folder, is_locked, parse_json

pytest.importorskip("optuna", reason="Optuna is an extra: pip install '.[tune]' in noisin's folder")
from readers import EPOCH, ORIGIN, READERS, RUN, WEIGHTS, WORDS, run_of, state_of  # noqa: E402

JSON_READERS = ("options", "run", "state", "measurements", "record")
ANY_NUMBER = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, -1, 0, True, 1e308, 10**30])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | st.text(max_size=8) | st.just("\ud800") | st.just("<script>\x00\x1b[2J"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
HOSTILE_BYTES = [b"\xff" * 8, b"\0" * 8, struct.pack("<q", 2**62), struct.pack("<i", -1), b"[" * 99, b"1e999", b"NaN"]


@st.composite
def mutated(draw, valid):
    """Valid bytes after a few changes: some overwritten, some left out, some put in."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        put_in = draw(st.binary(max_size=9) | st.sampled_from(HOSTILE_BYTES))
        content[start : start + draw(st.sampled_from([0, len(put_in), 1, 50]))] = put_in
    return bytes(content)


@st.composite
def with_a_value_replaced(draw, valid):
    """Valid JSON with any value anywhere in it replaced by any other, or a key added."""
    whole = parent = json.loads(valid)
    while True:
        key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        if not (isinstance(parent[key], (dict, list)) and parent[key] and draw(st.booleans())):
            break
        parent = parent[key]
    if isinstance(parent, dict) and draw(st.integers(0, 9)) == 0:
        key = draw(st.text(max_size=8))
    parent[key] = draw(ANY_JSON)
    return json.dumps(whole).encode()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_accepts_what_is_valid(name):
    assert READERS[name].accepts(READERS[name].valid)


def contents(name):
    valid = READERS[name].valid
    anything = st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()) | mutated(valid)
    return anything | with_a_value_replaced(valid) if name in JSON_READERS else anything


@pytest.mark.parametrize("name", READERS)
def test_a_reader_ends_with_a_result_or_its_refusal(name):
    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(contents(name))
    def check(content):
        READERS[name].accepts(content)

    check()


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "header too small"),
        (b"\x80\x04\x95 pickle" * 9, "header too large"),
        (WEIGHTS[:-1], "incomplete"),
        (WEIGHTS + b"more", "incomplete"),
        (WEIGHTS.replace(b"[2,3]", b"[9,3]"), "invalid"),
        (safetensors.numpy.save({"weight:weight": np.ones((2, 3))}), "weight:weight is not float32"),
        (safetensors.numpy.save({"a": np.array([1, np.nan], np.float32)}), "a has values that are not finite"),
        (safetensors.numpy.save({"a": np.array([-np.inf], np.float32)}), "a has values that are not finite"),
    ],
)
def test_weights_that_are_not_ours_are_one_line(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(RUN)
    for which in ("epoch", "best"):
        (tmp_path / f"{which}-0001.safetensors").write_bytes(content)
    (tmp_path / "state.json").write_bytes(state_of(content))
    with pytest.raises(UserError, match="0001.safetensors is damaged: ") as refusal:
        RunDirectory(tmp_path).recover(lambda line: None)
    said = str(refusal.value)  # safetensors writes it in one word before 0.6
    assert says in said or says.replace(" ", "") in said.lower()


@pytest.mark.parametrize("name", ["weight:weight", "optimizer:0:0"])
@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (1, 1), (6,), None])
def test_arrays_of_another_shape_are_refused_and_never_broadcast(tmp_path, name, shape):
    block = mx.gluon.nn.Dense(2, in_units=3, use_bias=False)
    block.initialize()
    trainer = mx.gluon.Trainer(block.collect_params(), "adam", kvstore=None)
    arrays = {"weight:weight": np.ones((2, 3)), "optimizer:0:0": np.ones((2, 3)), "optimizer:0:1": np.ones((2, 3))}
    arrays[name] = None if shape is None else np.ones(shape)
    content = {key: value.astype(np.float32) for key, value in arrays.items() if value is not None}
    safetensors.numpy.save_file(content, tmp_path / "epoch-0001.safetensors")
    (tmp_path / "config.json").write_bytes(RUN)
    (tmp_path / "state.json").write_bytes(state_of((tmp_path / "epoch-0001.safetensors").read_bytes()))
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=f"{name} is {'missing' if shape is None else 'of shape'}"):
        directory.restore(block, trainer, directory.load())


# ---- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"a": NaN}', "NaN is no number"),
        (b"-Infinity", "-Infinity is no number"),
        (b"1e400", "1e400 is no number"),
        (b"1" * 5000, "5000 digits is no number"),
        (b"0." + b"1" * 10**6, "is no number"),
        (b'{"a": 1, "a": 2}', "there twice"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a\\udc00": 1}', "surrogates not allowed"),
        (b'"\xff"', "can't decode"),
        (b"\xff\xfe{\0}\0", "can't decode"),
        (b"\0", "Expecting value"),
        (b'{"a": "\0"}', "Invalid control character"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"a":' * 10**5, "nested too deeply"),
        (b"{} {}", "Extra data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_json_that_another_reader_might_take_otherwise_is_refused(content, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_json(content)


@pytest.mark.parametrize(
    "change, value, says",
    [
        ("epochs", {}, "progress epochs is {}, not a list of at most 10000"),
        ("epochs", [], "progress epochs is"),
        ("epochs", [{**EPOCH, "epoch": 2}], "not numbered 1, 2"),
        ("epochs", [{**EPOCH, "epoch": True}], "progress epochs 1 epoch is True, not a whole number from 1 to 10000"),
        ("epochs", [{**EPOCH, "epoch": 1.0}], "progress epochs 1 epoch is 1.0, not a whole"),
        ("epochs", [{**EPOCH, "valid_ppl": "8"}], "progress epochs 1 valid_ppl is '8', not a perplexity"),
        ("epochs", [{**EPOCH, "train_ppl": 1.7e308}], "progress epochs 1 train_ppl is 1.7e"),
        ("epochs", [{**EPOCH, "seconds": -1}], "progress epochs 1 seconds is -1, not a number above 0"),
        ("epochs", [{**EPOCH, "gamma": 0.2}], "progress epochs 1 gamma is 0.2, not a list of numbers"),
        ("epochs", [{**EPOCH, "gamma": []}], "epochs 1 gamma has 0 values, not 1"),
        ("epochs", [{}], "progress epochs 1 has no 'epoch'"),
        ("best_epoch", 2, "best_epoch is 2, but its best epoch makes it 1"),
        ("best_epoch", True, "progress best_epoch is True"),
        ("best_epoch", 1.0, "progress best_epoch is 1.0"),
        ("best_epoch", None, "progress best_epoch is None"),
        ("valid_ppl", 3.0, "valid_ppl is 3.0, but its best epoch makes it 8.5"),
        ("updates", -1, "progress updates is -1"),
        ("updates", 10**30, "progress updates is 10000"),
        ("updates", True, "progress updates is True"),
        ("updates", 1.5, "progress updates is 1.5"),
        ("status", "\x1b[2J", "progress status is"),
        ("status", ["running"], "progress status is"),
        ("started", None, "progress started is None, not a time"),
        ("started", "2026-01-01 now", "progress started is '2026-01-01 now', not a time"),
        ("reason", "a\nb", "progress reason is"),
        ("origins", [], "progress origins is"),
        ("origins", [{**ORIGIN, "git": "mine"}], "progress origins 1 git is 'mine', not commits"),
        ("more", 1, "progress has the unknown field 'more'"),
    ],
)
def test_a_state_of_wrong_types_or_values_is_refused(tmp_path, change, value, says):
    (tmp_path / "config.json").write_bytes(RUN)
    (tmp_path / "state.json").write_bytes(state_of(WEIGHTS, **{change: value}))
    with pytest.raises(UserError, match=re.escape(says)) as refusal:
        RunDirectory(tmp_path).load()
    assert str(refusal.value).startswith(f"{tmp_path / 'state.json'} is damaged: ")


@pytest.mark.parametrize(
    "name",
    ["../epoch-0001.safetensors", "/etc/passwd", "", "..", "lock", "epoch-0001.safetensors\n", "epoch-0001.params", 3],
)
def test_a_state_names_files_of_its_own_folder_alone(tmp_path, name):
    state = json.loads(state_of(WEIGHTS))
    state["files"]["epoch"]["name"] = name
    (tmp_path / "config.json").write_bytes(RUN)
    (tmp_path / "state.json").write_text(json.dumps(seal(state)))
    with pytest.raises(UserError, match=r"state.json is damaged: files epoch name is .*, not a file of weights"):
        RunDirectory(tmp_path).recover(lambda line: None)


def test_a_vocabulary_is_held_against_its_sha256_before_it_is_parsed(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_bytes(RUN)
    (tmp_path / "vocabulary.txt").write_bytes(WORDS + b"".join(b"%d\n" % number for number in range(200_000)))
    tracemalloc.start()
    with pytest.raises(UserError, match="vocabulary.txt is damaged: its sha256 is not the one in config.json"):
        RunDirectory(tmp_path).read_vocabulary()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (tmp_path / "vocabulary.txt").stat().st_size  # parsed, it takes some fifty times its size


def test_a_vocabulary_is_held_against_the_weights_before_it_is_parsed(tmp_path):
    weights = {f"weight:{name}": np.zeros((5, 3), np.float32) for name in ("embedding_weight", "decoder_weight")}
    content = safetensors.numpy.save(weights)
    (tmp_path / "best-0001.safetensors").write_bytes(content)
    words = WORDS + b"".join(b"%d\n" % number for number in range(200_000))
    (tmp_path / "config.json").write_bytes(run_of(words))
    (tmp_path / "state.json").write_bytes(state_of(content))
    (tmp_path / "vocabulary.txt").write_bytes(words)
    tracemalloc.start()
    with pytest.raises(UserError, match="vocabulary.txt is damaged: the run's weights are of 5 words"):
        RunDirectory(tmp_path).read_vocabulary()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(words)


@pytest.mark.parametrize(
    "change",
    [
        {"min": 1e9},
        {"max": 1.0},
        {"words_per_second": "many"},
        {"words_per_second": 0},
        {"rates": []},
        {"rates": 5.0},
        {"rates": [5.0, None]},
        {"peak_mib": -1},
        {"peak_mib": True},
        {"peak_mib": 1e300},
        {"name": "another"},
        {"name": ["limit"]},
        {"workload": "\n"},
        {"dtype": "float64"},
    ],
)
@pytest.mark.parametrize("part", ["measurements", "growth"])
def test_measurements_of_wrong_types_or_values_are_refused(part, change):
    results = json.loads(READERS["measurements"].valid)
    results[part][0].update(change)
    assert not READERS["measurements"].accepts(json.dumps(results).encode())


# ---- something else in the place of a file -------------------------------------------------------------------------


def replace_by(kind, path):
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with open(path, "wb") as file:
            file.truncate(2**40)  # a terabyte that takes no space on the disk


@pytest.fixture
def checkpoint(tmp_path):
    """A run directory, and a text of one's own."""
    (tmp_path / "config.json").write_bytes(RUN)
    for which in ("epoch", "best"):
        (tmp_path / f"{which}-0001.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "state.json").write_bytes(state_of(WEIGHTS))
    (tmp_path / "text.txt").write_bytes(READERS["text"].valid)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "state.json", "epoch-0001.safetensors", "text.txt"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "terabyte"])
def test_what_is_no_file_is_refused_at_once(checkpoint, capsys, kind, name):
    directory, path = RunDirectory(checkpoint), checkpoint / name
    replace_by(kind, path)
    if (kind, name) == ("loop", "state.json"):
        assert directory.load() is None  # as good as none
        return
    start = time.process_time()  # whoever waits for a pipe is stopped by pytest-timeout
    with pytest.raises(UserError, match=name):
        if name == "text.txt":
            load_corpus(str(path))
        else:
            directory.read_config()
            directory.recover(lambda line: None)
    if name == "config.json" and kind != "loop":
        assert main(["train", "--config", str(path)]) == 2
        assert main(["runs", str(checkpoint)]) == 2
        captured = capsys.readouterr()
        by_train, by_runs = captured.err.splitlines()
        assert by_train.startswith("noisin: error: ") and by_runs.startswith("noisin: error: .: ")
        assert str(path) in by_train and str(path) in by_runs and "damaged" in captured.out
    assert time.process_time() - start < 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_a_lock_is_no_link_nor_pipe(tmp_path, kind):
    lock = tmp_path / "lock"
    lock.touch()
    replace_by(kind, lock)
    with pytest.raises(UserError, match="cannot make the run directory"), RunDirectory(tmp_path).lock():
        raise AssertionError("it was held")


def test_a_lock_does_not_overwrite_what_it_links_to(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError), RunDirectory(tmp_path).lock():
        raise AssertionError("it was held")
    assert (tmp_path / "precious").read_text() == "text"


def test_a_lock_whose_holder_is_no_text_is_still_a_lock(tmp_path):
    with hold_folder(tmp_path):
        (tmp_path / "lock").write_bytes(b"\xff\x1b[2J\n" * 99)
        assert is_locked(tmp_path / "lock")
        with pytest.raises(UserError) as refusal:
            hold_folder(tmp_path, patience=0)
    assert str(refusal.value).isprintable()


# ---- messages, time and memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, says",
    [
        ({"corpus": "a\nb\x1b[2J"}, r"a\nb\x1b[2J': it must be text"),
        ({"corpus": "\0"}, r"\x00': it must be text"),
        ({"corpus": "~nobody-of-that-name/x"}, "no such corpus"),
        ({"corpus": "x" * 10**6}, "it must be text of at most 4,096 characters"),
        ({"x\n" * 10**6: 1}, "unknown option"),
        ({"method": "y" * 10**6}, "it must be one of"),
        ({"hidden": [[[[[[[[]]]]]]]]}, "it must be a whole number"),
        ({"noise": "gamma", "noise_parameters": {"k": 10**30}}, "it must be from"),
        ({"noise": "gamma", "noise_parameters": {"self": 1}}, "has no parameter 'self'"),
        ({"hidden": 100_000, "layers": 64}, "memory"),
        ({"batch_size": 100_000, "unroll": 10_000}, "use more text"),
        ({"eval_batch_size": 100_000, "eval_samples": 1000, "method": "noisin"}, "memory"),
    ],
)
def test_a_refusal_is_one_short_line_without_commands_to_the_terminal(tmp_path, capsys, options, says):
    (tmp_path / "options.json").write_text(json.dumps(options))
    start = time.process_time()
    assert main(["train", "--config", str(tmp_path / "options.json"), "--run-dir", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1 and line[:-1].isprintable() and len(line) < 2500
    assert time.process_time() - start < 5


MEASURE = """
import json, sys, time
from pathlib import Path
from benchmarks.worker import peak_mib
from noisin.system.errors import UserError
from noisin.system.files import read_json
before, start = peak_mib(), time.process_time()
try:
    read_json(Path(sys.argv[1]))
except UserError:
    pass
print(json.dumps([peak_mib() - before, time.process_time() - start]))
"""


@pytest.mark.parametrize(
    "unit, size, mebibytes",
    [
        (b"[],", MAX_JSON, 1500),  # the most that a byte of JSON can take
        (b"x", 50_000_000, 5),  # one line, too long: not read at all
    ],
)
def test_the_worst_json_takes_bounded_time_and_memory(tmp_path, unit, size, mebibytes):
    path = tmp_path / "options.json"
    path.write_bytes(b'{"a":[' + unit * (size // len(unit) - 5) + b"1]}")
    outcome = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    found, seconds = json.loads(outcome.stdout)
    assert found < mebibytes and seconds < 30
