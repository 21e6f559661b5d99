"""Files that somebody crafted: one line or a valid result, in bounded time and memory, and nothing is run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import subprocess
import sys
import time

import mxnet as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, STATE, WEIGHTS

from noisin.cli import main
from noisin.data.corpus import load_corpus
from noisin.runs.directory import RunDirectory
from noisin.runs.weights import parse_arrays
from noisin.system.errors import UserError
from noisin.system.files import MAX_JSON, is_locked, open_lock, parse_json

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


# ---- .params -------------------------------------------------------------------------------------------------------


def array(shape=(2,), magic=0xF993FAC9, storage=0, kind=0, dimensions=None, values=None):
    head = struct.pack("<Iii", magic, storage, len(shape) if dimensions is None else dimensions)
    values = struct.pack(f"<{abs(math.prod(shape))}f", *range(abs(math.prod(shape)))) if values is None else values
    return head + struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<iii", 1, 0, kind) + values


def container(*arrays, names=(b"a",), count=None, magic=0x112):
    named = struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", magic, 0, len(arrays) if count is None else count) + b"".join(arrays) + named


def test_params_are_read_as_mxnet_writes_them(tmp_path):
    written = {"weight:a": mx.nd.random.normal(shape=(3, 2)), "é": mx.nd.zeros((1,)), "b": mx.nd.ones((2, 1, 4))}
    mx.nd.save(str(tmp_path / "a.params"), written)
    read = parse_arrays((tmp_path / "a.params").read_bytes())
    assert list(read) == list(written)
    assert all(np.array_equal(values, written[name].asnumpy()) for name, values in read.items())
    assert parse_arrays(container(array()))["a"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "truncated"),
        (b"\x80\x04\x95 pickle" * 9, "does not begin"),
        (container(array(), magic=0x113), "does not begin"),
        (container(array())[:-1], "truncated"),
        (container(array()) + b"more", "4 bytes are left over"),
        (container(count=2**40), "claims to hold 1099511627776 things"),
        (container(array((2**38,), values=b"")), "claims more than it holds"),
        (container(array((2**32, 2**32), values=b"")), "claims more than it holds"),  # 0 elements in 64 bits
        (container(array((2**62,) * 8, values=b"")), "claims more than it holds"),
        (container(array((-5,))), "has the shape (-5,)"),
        (container(array((0,))), "has the shape (0,)"),
        (container(array((), dimensions=-1)), "has -1 dimensions"),  # a segmentation fault of mx.nd.load
        (container(array((), dimensions=0)), "has 0 dimensions"),
        (container(array(dimensions=2**30)), "dimensions"),
        (container(array(storage=1)), "not dense"),
        (container(array(magic=0xF993FAC8)), "of another version"),
        (container(array(kind=1)), "not float32"),
        (container(array(values=struct.pack("<ff", 1, float("nan")))), "not finite"),
        (container(array(), names=()), "no names"),
        (container(array(), array(), names=(b"a", b"a")), "there twice"),
        (container(array(), names=(b"\xff",)), "can't decode"),
        (container(array(), names=(b"a\0b",)), "zero byte"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_params_that_are_not_ours_are_refused(content, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_arrays(content)


@pytest.mark.parametrize("name", ["weight:weight", "optimizer:0:0"])
@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (1, 1), (6,), None])
def test_arrays_of_another_shape_are_refused_and_never_broadcast(tmp_path, name, shape):
    block = mx.gluon.nn.Dense(2, in_units=3, use_bias=False)
    block.initialize()
    trainer = mx.gluon.Trainer(block.collect_params(), "adam", kvstore=None)
    arrays = {"weight:weight": np.ones((2, 3)), "optimizer:0:0": np.ones((2, 3)), "optimizer:0:1": np.ones((2, 3))}
    arrays[name] = None if shape is None else np.ones(shape)
    content = {key: mx.nd.array(value) for key, value in arrays.items() if value is not None}
    mx.nd.save(str(tmp_path / "epoch-0001.params"), content)
    write_state(tmp_path)
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=f"{name} is {'missing' if shape is None else 'of shape'}"):
        directory.restore(block, trainer, directory.load())


def write_state(folder):
    """The state of a checkpoint whose weights lie in the folder, with their sha256: as anybody can compute it."""
    digest = hashlib.sha256((folder / "epoch-0001.params").read_bytes()).hexdigest()
    state = {**STATE, "files": {"last": {"name": "epoch-0001.params", "sha256": digest}}}
    (folder / "state.json").write_text(json.dumps(state))


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
    "change, value",
    [
        ("epochs", {}),
        ("epochs", [{**STATE["progress"]["epochs"][0], "epoch": 2}]),
        ("epochs", [{**STATE["progress"]["epochs"][0], "epoch": True}]),
        ("epochs", [{**STATE["progress"]["epochs"][0], "valid_ppl": "8"}]),
        ("epochs", [{**STATE["progress"]["epochs"][0], "seconds": -1}]),
        ("epochs", [{**STATE["progress"]["epochs"][0], "gamma": 0.2}]),
        ("epochs", [{}]),
        ("best_epoch", 1),
        ("best_epoch", True),
        ("best_valid_ppl", 3.0),
        ("updates", -1),
        ("updates", 10**30),
        ("updates", True),
        ("updates", 1.5),
        ("status", "\x1b[2J"),
        ("status", ["running"]),
        ("started", None),
        ("more", 1),
    ],
)
def test_a_state_of_wrong_types_or_values_is_refused(tmp_path, change, value):
    state = {**STATE, "progress": {**STATE["progress"], change: value}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="state.json is damaged"):
        RunDirectory(tmp_path).load()


@pytest.mark.parametrize(
    "name", ["../epoch-0001.params", "/etc/passwd", "", "..", "lock", "epoch-0001.params\n", "\0", 3]
)
def test_a_state_names_files_of_its_own_folder_alone(tmp_path, name):
    state = {**STATE, "files": {"last": {**STATE["files"]["last"], "name": name}}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="state.json is damaged"):
        RunDirectory(tmp_path).recover(lambda line: None)


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
    (tmp_path / "config.json").write_bytes(READERS["run"].valid)
    (tmp_path / "epoch-0001.params").write_bytes(WEIGHTS)
    write_state(tmp_path)
    (tmp_path / "text.txt").write_bytes(READERS["text"].valid)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "state.json", "epoch-0001.params", "text.txt"])
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
        assert main(["runs", str(checkpoint)]) == 0
        captured = capsys.readouterr()
        by_train, by_runs = captured.err.splitlines()
        assert by_train.startswith("noisin: error: ") and by_runs.startswith("noisin: .: ")
        assert str(path) in by_train and str(path) in by_runs and "damaged" in captured.out
    assert time.process_time() - start < 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_a_lock_is_no_link_nor_pipe(tmp_path, kind):
    lock = tmp_path / "lock"
    lock.touch()
    replace_by(kind, lock)
    with pytest.raises(UserError, match="cannot make the run directory"), RunDirectory(tmp_path).held():
        raise AssertionError("it was held")


def test_a_lock_does_not_overwrite_what_it_links_to(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError), RunDirectory(tmp_path).held():
        raise AssertionError("it was held")
    assert (tmp_path / "precious").read_text() == "text"


def test_a_lock_whose_holder_is_no_text_is_still_a_lock(tmp_path):
    with open_lock(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(b"\xff\x1b[2J\n" * 99)
        assert is_locked(tmp_path / "lock")
        with pytest.raises(UserError) as refusal:
            open_lock(tmp_path / "lock", patience=0)
    assert str(refusal.value).isprintable()


# ---- messages, time and memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, says",
    [
        ({"corpus": "a\nb\x1b[2J"}, r"a\nb\x1b[2J"),
        ({"corpus": "\0"}, r"\x00"),
        ({"corpus": "~nobody-of-that-name/x"}, "no such corpus"),
        ({"corpus": "x" * 10**6}, "no such corpus"),
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
import json, resource, sys, time
from pathlib import Path
from noisin.system.errors import UserError
from noisin.system.files import read_json
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read_json(Path(sys.argv[1]))
except UserError:
    pass
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start]))
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
    kibibytes, seconds = json.loads(outcome.stdout)
    assert kibibytes < mebibytes * 1024 and seconds < 30
