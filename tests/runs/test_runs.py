"""Watching runs: two at once on one directory, the list of runs, events for TensorBoard."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.processes import file_size_limit, wait_for

from noisin.commands.main import main
from noisin.runs.directory import RunDirectory
from noisin.runs.events import Events
from noisin.system.errors import UserError
from noisin.system.files import hold_folder, is_locked, write_json

QUICK = ("--hidden", "8", "--batch-size", "50", "--quiet")


def start(run_dir, *options):
    command = [sys.executable, "-W", "ignore", "-m", "noisin", "train", "--run-dir", str(run_dir), *QUICK, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_process_is_told_who_trains_and_a_killed_one_is_no_obstacle(tmp_path, capsys):
    first = start(tmp_path / "run", "--epochs", "1000", "--patience", "1000")
    try:
        wait_for((tmp_path / "run" / "metrics.jsonl").exists, process=first)
        assert (
            main(["train", "--run-dir", str(tmp_path / "run"), *QUICK, "--epochs", "1000", "--patience", "1000"]) == 2
        )
        error = capsys.readouterr().err
        assert error == (
            f"noisin: error: {tmp_path / 'run'} is in use by process {first.pid} on {socket.gethostname()}: "
            "wait for it, or stop it\n"
        )
        assert main(["runs", str(tmp_path)]) == 0
        assert re.search(r"^ *run +running +none ", capsys.readouterr().out, re.MULTILINE)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert main(["runs", str(tmp_path)]) == 0
    assert re.search(r"^ *run +interrupted +none +\d+ of 1000 ", capsys.readouterr().out, re.MULTILINE)
    again = start(tmp_path / "run", "--epochs", "1000", "--patience", "1000")
    assert again.stdout.readline().startswith("run ")
    assert again.stdout.readline().startswith("resuming after epoch ")
    again.kill()
    again.communicate()


def test_a_lock_is_let_go_when_its_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    file = hold_folder(tmp_path)
    assert is_locked(path)
    file.close()
    assert not is_locked(path)
    hold_folder(tmp_path).close()


def test_a_lock_is_waited_for_and_what_a_killed_process_left_half_written_is_removed(tmp_path):
    torn, other = tmp_path / f".epoch-0001.safetensors.{8 * '01ef'}.tmp", tmp_path / ".mine.tmp"
    torn.touch()
    other.touch()
    with RunDirectory(tmp_path).lock():
        assert not torn.exists() and other.exists()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
            hold_folder(tmp_path, patience=0.2)
    file = hold_folder(tmp_path)
    threading.Timer(0.5, file.close).start()
    hold_folder(tmp_path).close()


def test_what_is_written_stays_through_a_power_failure(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def noting_fsync(file):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def noting_replace(source, target):
        done.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    folder = tmp_path / "runs" / "new"
    write_json(folder / "state.json", {})
    made, (_, aside), renamed = done[:2], done[2], done[3:]
    assert made == [("fsync", str(tmp_path)), ("fsync", str(folder.parent))]
    assert re.fullmatch(rf"{folder}/\.state\.json\.[0-9a-f]+\.tmp", aside)
    assert renamed == [("rename", str(folder / "state.json")), ("fsync", str(folder))]


def test_a_checkpoint_is_there_when_its_epoch_is_said(tmp_path, monkeypatch):
    done, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr("noisin.commands.train.report", lambda line: done.append(line))
    assert main(["train", "--run-dir", str(tmp_path / "run"), *QUICK, "--epochs", "1"]) == 0
    said = next(place for place, line in enumerate(done) if line.startswith("epoch"))
    flushed = [Path(path).name.split(".")[1] for path in done[:said] if path.endswith(".tmp")]
    assert flushed == ["config", "vocabulary", "metrics", "epoch-0001", "best-0001", "state"]
    assert done[said - 1] == str(tmp_path / "run")
    assert Path(done[-3]).name.startswith(".record.json.") and done[-2] == str(tmp_path / "run")


def test_who_waits_for_long_is_told_for_whom(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("noisin.system.files.BRIEF", 0.2)
    file, say = hold_folder(tmp_path), print
    monkeypatch.setattr("builtins.print", lambda *said, **where: say(*said, **where) or file.close())
    hold_folder(tmp_path, patience=30).close()
    assert re.fullmatch(f"waiting for process {os.getpid()} on .*, which uses {tmp_path}\n", capsys.readouterr().err)


def test_runs_lists_each_run_with_its_status(tmp_path, capsys):
    options = [*QUICK, "--epochs", "2"]
    assert (
        main(["train", "--run-dir", str(tmp_path / "a" / "done"), *options, "--method", "noisin*", "--gamma", "0.3"])
        == 0
    )
    assert main(["train", "--run-dir", str(tmp_path / "none"), *options]) == 0
    record = json.loads((tmp_path / "a" / "done" / "record.json").read_text())
    (tmp_path / "none" / "record.json").unlink()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"config": {"hidden": "many"}}')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes((tmp_path / "none" / "config.json").read_bytes())
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 2  # as from any command that meets a damaged run
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line for line in lines[1:]}
    valid, test = f"{record['valid_ppl']:.2f}", record["test_ppl"]
    gamma = f"{record['epochs'][record['best_epoch'] - 1]['gamma'][0]:.3f}"
    best = str(record["best_epoch"])
    expected = ["a/done", "finished", "noisin*", "2", "of", "2", best, valid, gamma]
    assert rows["a/done"] == [*expected, f"{test['clean']:.2f}", f"{test['averaged']:.2f}"]
    assert rows["none"][1:7] == ["not", "tested", "none", "2", "of", "2"]
    assert " ".join(rows["begun"]).startswith("begun not one epoch yet none")
    assert rows["odd"][1] == "damaged"


@pytest.mark.parametrize("folder, says", [("absent", "No such file or directory"), (".", "holds no run")])
def test_runs_of_nothing_is_one_line(tmp_path, monkeypatch, capsys, folder, says):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", folder]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def scalars(folder):
    """(name, step) -> value, from the event files in `folder`, in the format of TFRecord."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [((value.tag, event.step), value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    assert len(found) == len(dict(found)), "an epoch is there twice"
    return dict(found)


def test_events_hold_every_epoch_once(tmp_path):
    options = ["train", "--run-dir", str(tmp_path), *QUICK, "--method", "noisin", "--epochs", "3", "--events"]
    assert main(options) == 0
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = scalars(tmp_path / "events")
    assert [first["perplexity/valid", n] for n in (1, 2, 3)] == pytest.approx([e["valid_ppl"] for e in metrics])
    assert [first["gamma/layer1", n] for n in (1, 2, 3)] == pytest.approx([0.2] * 3)


def test_a_resumed_run_writes_its_earlier_epochs_anew(tmp_path):
    epochs = [
        {"epoch": n, "train_ppl": 9.0 / n, "valid_ppl": 8.0 / n, "tokens_per_second": 1.0, "gamma": []} for n in (1, 2)
    ]
    before = Events(tmp_path / "events")
    before.begin([])
    for entry in epochs:
        before.add(entry)
    before.close()
    after = Events(tmp_path / "events")
    after.begin(epochs[:1])  # the second epoch was not saved
    after.add({**epochs[1], "valid_ppl": 7.0})
    after.close()
    found = scalars(tmp_path / "events")
    assert [found["perplexity/valid", n] for n in (1, 2)] == [8.0, 7.0]


def test_events_on_a_full_disk_are_an_error_and_not_a_wait_without_end(tmp_path):
    epoch = {"epoch": 1, "train_ppl": 9.0, "valid_ppl": 8.0, "tokens_per_second": 1.0, "gamma": []}
    events = Events(tmp_path / "events")
    events.begin([epoch])
    with file_size_limit(100), pytest.raises(UserError, match="cannot write events into .*events: File too large"):
        events.add(epoch)
    events.close()


def test_events_without_tensorboardx_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(["train", "--run-dir", str(tmp_path / "run"), *QUICK, "--events"]) == 2
    assert "pip install tensorboardX" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
