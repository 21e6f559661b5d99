"""Nothing lost: runs that are killed at any moment, or find the disk full, or are started twice at once."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
import time
from functools import partial

import lives
import pytest
from helpers.machine import MULTIPLIES_BFLOAT16
from lives import Life

import noisin
from noisin.commands.main import main
from noisin.runs.directory import RunDirectory

# Each method with either optimizer; every cell, and dtype if the processor has it, a tied decoder, learning rates that
# decay, two layers, two samples.
HALF = "--dtype bfloat16" if MULTIPLIES_BFLOAT16 else "--dtype float32"
DECAY = "--decay 0.5 --decay-after 2"
RUNS = {
    "none, adam": "--method none --optimizer adam --decoder tied",
    "none, sgd": f"--method none --optimizer sgd --learning-rate 0.5 --cell lstm {HALF} {DECAY}",
    "dropout, adam": f"--method dropout --optimizer adam --activation tanh {HALF} --weight-decay 0.001",
    "dropout, sgd": f"--method dropout --optimizer sgd --learning-rate 0.5 --cell lstm {DECAY}",
    "noisin, adam": "--method noisin --optimizer adam --cell gru --layers 2",
    "noisin, sgd": f"--method noisin --optimizer sgd --learning-rate 0.1 --activation relu {HALF} {DECAY}",
    "noisin*, adam": f"--method noisin* --optimizer adam {HALF}",
    "noisin*, sgd": f"--method noisin* --optimizer sgd --learning-rate 0.5 --cell lstm --samples 2 {DECAY}",
}
KILLS = 7  # of each at least: over fifty


@pytest.fixture(scope="module", autouse=True)
def server():
    """The process that all lives come from is there, so that the first one is no longer than the others."""
    finish(["--version"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """1,080 words of 40 types, with something to learn in them."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    random_ = random.Random(1)
    lines = (" ".join(f"w{(7 * n + random_.randrange(3)) % 40}" for n in range(m, m + 9)) for m in range(120))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def command(directory, text, options, epochs):
    """The arguments of a small run."""
    small = "--hidden 6 --batch-size 8 --unroll 5 --device cpu --quiet"
    return [
        *("train", "--run-dir", str(directory), "--corpus", str(text), "--epochs", str(epochs)),
        *small.split(),
        *options.split(),
    ]


def finish(arguments, fate=None):
    """Live to the end, without a mistake."""
    status, said = Life(arguments, fate).end()
    assert status == 0, said
    return said


def left_by(directory):
    """All that a run leaves in its directory, by name, without the times."""
    return {path.name: timeless(path) for path in directory.iterdir() if path.name != "lock"}


def timeless(path):
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    content = path.read_text(encoding="utf-8")
    # The checkout may change meanwhile, and with it the commit; the digest is that of all of these, too.
    times = ("seconds", "tokens_per_second", "started", "finished", "git", "origins", "digest")
    return [
        json.loads(part, object_hook=lambda found: {name: found[name] for name in found if name not in times})
        for part in (content.splitlines() if path.suffix == ".jsonl" else [content])
    ]


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_is_not(tmp_path, text, seed, options):
    arguments = partial(command, text=text, options=options, epochs=6)
    start = time.monotonic()
    whole = Life(arguments(tmp_path / "whole"))
    while not (tmp_path / "whole" / "state.json").exists() and time.monotonic() < start + 60:
        time.sleep(0.01)
    longest = 1.5 * (time.monotonic() - start)  # so that about every second life ends an epoch
    status, said = whole.end()
    assert status == 0, said
    moments, kills = random.Random(seed), 0
    for number in itertools.count():
        status = None
        while status != 0:
            status, said = Life(arguments(tmp_path / str(number))).end(after=moments.uniform(0, longest))
            assert status in (0, -signal.SIGKILL), said
            kills += status != 0
            longest *= 1.02  # should the machine be slower than it was
        assert left_by(tmp_path / str(number)) == left_by(tmp_path / "whole")
        if kills >= KILLS:
            break


def test_a_run_that_is_killed_before_every_operation_on_its_files_ends_as_one_that_is_not(tmp_path, text):
    arguments = partial(command, text=text, options="--method noisin*", epochs=3)
    finish(arguments(tmp_path / "whole"))
    fate = partial(lives.die_before_what_is_new, tmp_path / "parts", tmp_path / "seen")
    status = None
    while status != 0:
        status, said = Life(arguments(tmp_path / "parts"), fate).end()
        assert status in (0, -signal.SIGKILL), said
    assert left_by(tmp_path / "parts") == left_by(tmp_path / "whole")
    seen = (tmp_path / "seen").read_text()
    for name in (
        "config.json",
        "metrics.jsonl",
        "epoch-0002.safetensors",
        "best-0002.safetensors",
        "state.json",
        "record.json",
    ):
        assert f"os.rename .{name}.tmp" in seen
    for name in ("state-before.json", "epoch-0001.safetensors", "best-0001.safetensors"):
        assert f"os.remove {name}" in seen


def test_a_full_disk_is_one_line_at_any_file_and_the_run_goes_on_when_there_is_space(tmp_path, text):
    arguments = partial(command, text=text, options="--method noisin*", epochs=2)
    finish(arguments(tmp_path / "whole"), partial(lives.note_files, tmp_path / "whole", tmp_path / "notes"))
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert len(notes) == 12
    cuts = [int(size) - 1 if name.endswith(".safetensors.tmp") else int(size) // 2 for size, name in notes]
    for number, cut in [(1, 0), *enumerate(cuts, 1)]:
        directory = tmp_path / f"{number}-{cut}"
        status, said = Life(arguments(directory), partial(lives.run_out_of_disk, directory, number, cut)).end()
        assert status == 2 and "Traceback" not in said
        assert re.fullmatch(rf"noisin: error: cannot .*{directory}.*", said.splitlines()[-1]), said
        assert not list(directory.glob(".*"))
        epochs = len(re.findall("^epoch", said, re.MULTILINE))
        assert epochs == 0 or len(RunDirectory(directory).recover(pytest.fail).epochs) == epochs
        finish(arguments(directory))
        assert left_by(directory) == left_by(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_by_what_differs(tmp_path, text, monkeypatch, capsys, finished):
    directory, own = tmp_path / "run", tmp_path / "own.txt"
    own.write_bytes(text.read_bytes())
    arguments = command(directory, own, "--method noisin", epochs=2)
    fate = None if finished else partial(lives.run_out_of_disk, directory, 7, 0)  # in the second epoch
    status, said = Life(arguments, fate).end()
    assert status == (0 if finished else 2) and "epoch   1" in said
    before = {path: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}

    def refused(*more):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(f"noisin: error: {directory} holds another run (")
        assert {path: path.read_bytes() for path in directory.iterdir() if path.name != "lock"} == before
        return error.split("(")[1].split(")")[0]

    assert refused("--gamma", "0.3", "--seed", "2") == "gamma was [0.2], is [0.3]; seed was 1, is 2"
    with monkeypatch.context() as patch:
        patch.setattr(noisin, "__version__", "0.2.0")
        assert refused() == "version was '0.1.0', is '0.2.0'"
    own.write_bytes(text.read_bytes() + b" more")
    assert refused() == "the text is another one"


def test_two_at_once_on_one_run_directory_make_one_run(tmp_path, text):
    arguments = partial(command, text=text, options="--method noisin*", epochs=4)
    finish(arguments(tmp_path / "whole"))
    ends = [life.end() for life in [Life(arguments(tmp_path / "run")) for _ in range(3)]]
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    assert sum("epoch   1 " in said for _, said in ends) == 1
    for status, said in ends:
        assert status == 0 or (status == 2 and "is in use by process" in said), said
