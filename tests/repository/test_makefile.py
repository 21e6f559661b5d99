"""The Makefile's targets, and when it makes the environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from helpers.processes import ENV, ROOT, run, stub


def make(*arguments, cwd=ROOT, **env):
    return run(["make", *arguments], cwd=cwd, **env)


@pytest.fixture
def clone(tmp_path):
    """Copy the little that make needs, with a make_venv.py that says who ran it; a file `fail` makes it fail."""
    folder = tmp_path / "a clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "tools" / "make_venv.py").write_text(MADE, encoding="utf-8")
    return folder


MADE = """
import os, shutil, sys, time
shutil.rmtree(".venv", ignore_errors=True)
os.makedirs(".venv/bin")
with open(".venv/bin/python", "w") as file:
    file.write("#!/bin/sh\\n" + os.environ.get("ENVIRONMENT", ""))
os.chmod(".venv/bin/python", 0o755)
print("made by", os.environ.get("WHO", "python3"), *sys.argv[1:], flush=True)
time.sleep(float(os.environ.get("SECONDS", 0)))
sys.exit(2 * os.path.exists("fail"))
"""


def python_stub(file):
    """A Python that says what it is called."""
    return stub(file, f'WHO={file.name} exec {sys.executable} "$@"')


def test_the_first_python_from_3_8_to_3_14_makes_the_environment(clone, tmp_path):
    folder = tmp_path / "bin"
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    stub(folder / "python3", "exit 1")  # as one that is too old, or a name that leads nowhere
    for name in ("python3.14", "python3.9"):
        python_stub(folder / name)
    assert "made by python3.14 .venv\n" in make("venv", cwd=clone, PATH=path).stdout
    python_stub(folder / "python3")
    (clone / "setup.py").write_text("# another one")
    assert "made by python3 .venv\n" in make("venv", cwd=clone, PATH=path).stdout


def test_no_usable_python_is_one_line(clone, tmp_path):
    names = ["python3", *(f"python3.{minor}" for minor in range(14, 7, -1))]
    for name in names:
        stub(tmp_path / "bin" / name, "exit 1")
    result = make("venv", cwd=clone, PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert (result.returncode, result.stdout) == (2, "")
    line, rest = result.stderr.split("\n", 1)
    assert line == (
        f"make: no CPython from 3.8 to 3.14 (tried {' '.join(names)}): apt-get install python3 python3-venv "
        "python3-dev, or make PYTHON=/path/to/python3"
    )
    assert rest.startswith("make: ***")


@pytest.mark.parametrize("version, usable", [((3, 7), 0), ((3, 8), 1), ((3, 14), 1), ((3, 15), 0), ((2, 7), 0)])
def test_the_variable_is_taken_or_refused_and_nothing_else_tried(clone, tmp_path, version, usable):
    assert make("venv", cwd=clone).stdout.startswith("made")
    disguise = f"import sys; sys.version_info = {version}; exec(sys.argv[2])"
    mine = stub(
        tmp_path / "my own" / "py",
        f"""[ "$1" = -c ] && exec {sys.executable} -c '{disguise}' "$@"
        WHO=mine exec {sys.executable} "$@" """,
    )
    result = make("venv", f"PYTHON={mine}", cwd=clone)
    assert result.stdout == ("made by mine .venv\n" if usable else "")
    if not usable:
        assert result.returncode == 2
        assert result.stderr.startswith(f"make: no CPython from 3.8 to 3.14 (tried {mine}): ")


def test_another_python_makes_another_environment_and_the_same_does_not(clone):
    same = f'exec {sys.executable} "$@"'  # what the environment's Python says it is
    assert "made" in make("venv", f"PYTHON={sys.executable}", cwd=clone, ENVIRONMENT=same).stdout
    assert "made" not in make("venv", f"PYTHON={sys.executable}", cwd=clone).stdout
    assert "made" not in make("venv", cwd=clone).stdout
    stub(clone / ".venv" / "bin" / "python", "echo another")
    assert "made" not in make("venv", cwd=clone).stdout
    assert "made" in make("venv", f"PYTHON={sys.executable}", cwd=clone).stdout


def test_the_environment_is_made_once_and_again_when_it_is_not_what_is_wanted(clone, tmp_path):
    (clone / "fail").touch()
    assert make("venv", cwd=clone).returncode == 2
    assert make("venv", cwd=clone).stdout.count("made") == 1  # a stopped install is not believed
    (clone / "fail").unlink()
    assert make("venv", cwd=clone).stdout.count("made") == 1
    assert make("venv", "test", "ptb", cwd=clone).stdout.count("made") == 0
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        (clone / name).touch()
        assert make("test", cwd=clone).stdout.count("made") == 0
        with open(clone / name, "a", encoding="utf-8") as file:
            file.write("# a change\n")
        assert make("test", cwd=clone).stdout.count("made") == 1
        assert make("test", cwd=clone).stdout.count("made") == 0
    (clone / ".venv" / "bin" / "python").unlink()
    assert make("test", cwd=clone).stdout.count("made") == 1
    copy = tmp_path / "copy"
    shutil.copytree(clone, copy)
    assert make("test", cwd=copy).stdout.count("made") == 1


TESTS = ["-m pytest -n auto -m not alone", "-m pytest -m alone"]


def test_a_changed_c_file_is_compiled_anew_in_the_same_environment(clone):
    (clone / "src" / "noisin" / "native").mkdir(parents=True)
    source = clone / "src" / "noisin" / "native" / "part.c"
    source.touch()
    assert make("venv", cwd=clone).stdout.count("made") == 1
    python = stub(clone / ".venv" / "bin" / "python", 'echo "$@"')
    assert "build_ext" not in make("test", cwd=clone).stdout
    time.sleep(0.02)  # a file's time is that of the last tick of the clock
    source.touch()
    assert make("test", cwd=clone).stdout.splitlines() == ["setup.py -q build_ext --inplace --force", *TESTS]
    assert make("test", cwd=clone).stdout.splitlines() == TESTS
    assert python.exists()


def test_two_makes_at_once_make_the_environment_once(clone):
    both = [
        subprocess.Popen(["make", "venv"], cwd=clone, env={**ENV, "SECONDS": "1"}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert "".join(process.communicate(timeout=60)[0] for process in both).count("made") == 1
    assert [process.returncode for process in both] == [0, 0]


def test_clean_spares_corpora_results_and_runs(clone):
    kept = ["data/ptb/ptb.train.txt", "experiments/results/table2/a.json", "runs/__pycache__/a", "src/noisin/noise.py"]
    gone = [".venv/bin/python", "build/lib/a", "src/noisin.egg-info/a", "src/noisin/__pycache__/a", ".ruff_cache/a"]
    for name in kept + gone:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert make("clean", cwd=clone).returncode == 0
    assert [name for name in kept if not (clone / name).exists()] == []
    assert [name for name in gone if (clone / name).exists()] == []


def test_help_is_the_default_and_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))
    assert targets >= {"help", "test", "lint", "clean", "demo", "ptb", "wikitext2"}
    result = make()
    assert result.stdout == make("help").stdout
    assert set(re.findall(r"^  ([a-z][\w-]*)  ", result.stdout, re.MULTILINE)) == targets


def test_narrowing_reaches_the_command_unchanged():
    plain = make("-n", "ptb").stdout.splitlines()[-1]
    assert shlex.split(plain)[1:] == ["-m", "experiments", "figure2"]
    variables = ("METHODS=noisin* it's", "EPOCHS=2", "SEEDS=1,2", "ONLY=layers=2,activation=tanh", "JOBS=2")
    narrowed = make("-n", "wikitext2", *variables, "DTYPE=bfloat16", "ARGS=--quiet").stdout
    assert shlex.split(narrowed.splitlines()[-1])[1:] == [
        *("-m", "experiments", "table3", "--epochs", "2", "--methods", "noisin* it's", "--seeds", "1,2"),
        *("--only", "layers=2,activation=tanh", "--jobs", "2", "--dtype", "bfloat16", "--quiet"),
    ]


def test_a_gpu_gets_an_environment_of_its_own_with_the_gpu_build():
    lines = make("-n", "ptb", "DEVICE=gpu:1").stdout
    assert "tools/make_venv.py .venv-gpu requirements-gpu.txt" in lines
    assert lines.splitlines()[-1] == ".venv-gpu/bin/python -m experiments figure2 --device 'gpu:1'"
    assert "gpu" not in make("-n", "ptb", "DEVICE=cpu").stdout
