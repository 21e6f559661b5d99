"""The command `noisin` as a user meets it, on good and bad input."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from helpers.commands import refused
from helpers.processes import ROOT
from helpers.processes import run as run_process
from helpers.records import without_times

from noisin.commands.main import COMMANDS, main
from noisin.config import Config
from noisin.data.corpus import load_corpus
from noisin.data.published import PUBLISHED
from noisin.runs.directory import RunDirectory, run_name
from noisin.runs.formats import seal
from noisin.search import SPACE
from noisin.system.device import check_dtype, processor_features
from noisin.training import train

QUICK = ["--hidden", "8", "--epochs", "1", "--quiet"]

# Of a name of 300 characters: from Python 3.14 on, pathlib says that there is no such file.
TOO_LONG = "does not exist" if sys.version_info >= (3, 14) else "File name too long"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("", "COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("train --gama 1", "train: error: --gama is not an option; did you mean --gamma? (see noisin train --help)"),
        ("train --gama=1", "train: error: --gama=1 is not an option; did you mean --gamma? (see"),
        ("train --zzz", "train: error: --zzz is not an option (see noisin train --help)"),
        ("sample", "sample: error: one of the arguments RUN_DIR --pretrained is required (see noisin sample --help)"),
        ("sample --pretrained gpt", "--pretrained: there is no 'gpt': choose from wikitext2-small (see"),
        ("sample run --pretrained wikitext2-small", "--pretrained: not allowed with argument RUN_DIR (see"),
        ("evaluate one two", "evaluate: error: two is one argument too many (see noisin evaluate --help)"),
        ("train --hidden 0", "argument --hidden: '0' is invalid: it must be from 1 to 100000 (see"),
        ("train --hidden many", "argument --hidden: 'many' is not a whole number"),
        ("train --hidden nan", "--hidden"),
        ("train --learning-rate nan", "argument --learning-rate: 'nan' is invalid: it must be from 1e-09 to 1000"),
        ("train --learning-rate 0", "argument --learning-rate: '0' is invalid"),
        ("train --seed 2147483648", "it must be from 0 to 2147483647"),
        ("train --dropout-states 1", "--dropout-states: '1' is invalid: it must be from 0 to 0.99"),
        ("train --method noise", "invalid choice: 'noise'"),
        ("train --noise cauchy", "invalid choice: 'cauchy'"),
        ("train --noise gamma --noise-parameters k=-1", "k of noise family 'gamma' is -1.0"),
        ("train --noise gamma --noise-parameters j=1", "has no parameter 'j' (it has: k)"),
        ("train --noise gamma --noise-parameters name=1", "has no parameter 'name' (it has: k)"),
        ("train --noise-parameters k", "'k' is not names with numbers"),
        ("train --noise gamma --noise-parameters k=2,k=3", "'k=2,k=3' is not names with numbers"),
        ("train --threads 100000", "--threads 100000: this machine takes at most"),
        ("train --run-dir=", "--run-dir: the path is empty"),
        ("train --gamma 0.1,x", "'0.1,x' is not numbers"),
        ("train --gamma 0.1,0.2", "--gamma has 2 values for 1 layer: give one"),
        ("train --gamma -1", "--gamma: '-1' is invalid: it must be from 0 to 1000"),
        ("train --method noisin* --gamma 0.1", "error: --gamma starts at 0.1 with --lower-bound 0.1"),
        ("train --method noisin* --input-gamma 0.05", "error: --input-gamma starts at 0.05 with --lower-bound 0.1"),
        ("train --gamma 0.3", "--gamma has no effect with --method none; remove it"),
        ("train --method noisin --lower-bound 0.1", "--lower-bound has no effect with --method noisin"),
        ("train --method noisin --dropout-states 0.1", "--dropout-states has no effect with --method noisin"),
        ("train --cell gru --activation tanh", "--activation has no effect with --cell gru"),
        ("train --cell gru --forget-bias 1", "--forget-bias has no effect with --cell gru"),
        ("train --decay-after 2", "--decay-after has no effect with --decay 1.0"),
        ("train --samples 4", "--samples has no effect with --method none"),
        ("train --max-vocabulary 500", "--max-vocabulary has no effect with --corpus synthetic"),
        ("train --device tpu", "--device tpu is unknown"),
        ("train --device gpu", "gpu:0 cannot be used"),
        ("train --corpus nowhere.txt", "nowhere.txt"),
        ("train --corpus=", "the name of the corpus is empty"),
        ("train --data-dir .", "--data-dir has no effect with --corpus synthetic; remove it"),
        ("tune --data-dir .", "--data-dir has no effect with --corpus synthetic; remove it"),
        ("train --decay 0.5 --decay-after 1234567", "--decay-after: '1234567' is invalid: it must be from 0 to 100000"),
        (f"sample {300 * 'x'}", TOO_LONG),
        (f"evaluate {300 * 'x'}", TOO_LONG),
        (f"runs {300 * 'x'}", "File name too long"),
        ("train --config nowhere.json", "nowhere.json"),
        ("evaluate nowhere", "nowhere does not exist: give a directory made by noisin train"),
        ("evaluate .", ". holds no run (it has no config.json)"),
        ("sample nowhere", "nowhere does not exist"),
        ("sample nowhere --words 0", "0 is not a positive whole number"),
        ("sample . --temperature -1", "argument --temperature: '-1' is not a number of at least 0"),
        ("sample . --temperature x", "argument --temperature: 'x' is not a number of at least 0"),
        ("sample . --top-p 0", "argument --top-p: '0' is not a number above 0 and at most 1"),
        ("evaluate . --samples 2000", "argument --samples: '2000' is invalid: it must be from 1 to 1000"),
        ("evaluate . --repetitions 2", "--repetitions has no effect without --particles"),
        ("data", "CORPUS"),
        ("train --decoder tied --embedding 8 --hidden 9", "--embedding is 8 and --hidden is 9: a tied decoder"),
        ("train --corpus .", ".: no text in this folder; put train.txt, valid.txt and test.txt there"),
        ("train --config .", "--config . is a directory: name a file of options, e.g. config.json"),
        ("train --run-dir /proc/foo", "run directory /proc/foo: No such file or directory; give another --run-dir"),
        ("train --run-dir /dev/null", "run directory /dev/null: Not a directory; give another --run-dir"),
        ("tune --study /dev/null", "cannot use /dev/null for a study: Not a directory; give another --study"),
        ("data nowhere", "nowhere: no such corpus or file; expected ptb, wikitext-2, synthetic, a text file"),
        ("data ptbb", "did you mean ptb?"),
        ("train --corpus WikiText2", "did you mean wikitext-2?"),
        ("train --corpus wikitext2 --max-vocabulary 5", "has no effect with --corpus wikitext-2"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_wrong(capsys, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_output_cannot_show_is_escaped(monkeypatch, tmp_path, encoding):
    monkeypatch.chdir(tmp_path)
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding=encoding))
    for name in ("\u4e2d\u6587.txt", os.fsdecode(b"\xff.txt")):  # no encoding has the second one
        Path(name).write_text("one two three\n" * 20)
        assert main(["data", name]) == 0
    shown = output.getvalue().decode(encoding)
    assert ("\u4e2d\u6587" if encoding == "utf-8" else "\\u4e2d\\u6587") in shown and "\\udcff.txt" in shown


def test_a_name_is_neither_markdown_nor_a_command_to_the_terminal(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = "a|b`<i>[x]\x1b[2J.txt"
    Path(name).write_text("one two three\n" * 700)
    assert main(["data", name]) == 0
    table = capsys.readouterr().out
    assert r"a\|b\`&lt;i>\[x]\\x1b\[2J.txt" in table and table.splitlines()[0].replace(r"\|", "").count("|") == 3
    assert main(["train", "--run-dir", "run\x1b[2J", *QUICK]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert r"\x1b[2J" in refused(capsys, "train", "\x1b[2J\n")
    assert main(["sample", "run\x1b[2J", "--prompt", "\x1b[2J", "--words", "1"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


@pytest.mark.parametrize(
    "content, says",
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"hiden": 3}', "options.json has the unknown option 'hiden'; did you mean 'hidden'?"),
        ('{"hidden": "3"}', "options.json, hidden is '3': it must be a whole number"),
        ('{"batch_size": 0}', "options.json, batch_size is 0: it must be from 1 to 100000"),
        ('{"hidden": true}', "hidden is True: it must be a whole number"),
        ('{"gamma": 0.1}', "gamma is 0.1: it must be one or more numbers"),
        ('{"gamma": []}', "gamma is []: it must be one or more numbers"),
        ('{"noise_parameters": [1]}', "noise_parameters is [1]"),
        ('{"corpus": 3}', "corpus is 3: it must be text"),
        ('{"activation": null}', "activation is missing"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_configuration_file_is_refused_in_one_line(capsys, tmp_path, content, says):
    path = tmp_path / "options.json"
    path.write_text(content)
    assert says in refused(capsys, "train", "--config", str(path), "--hidden", "3", "--batch-size", "3")


def test_options_of_the_command_line_go_before_those_of_the_file(capsys, tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"hidden": 6, "epochs": 1, "seed": 4}))
    status = main(
        [
            "train",
            "--config",
            str(tmp_path / "options.json"),
            "--seed",
            "5",
            "--run-dir",
            str(tmp_path / "run"),
            "--quiet",
        ]
    )
    assert status == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["hidden"], config["seed"], config["batch_size"]) == (6, 5, Config().batch_size)


def test_a_file_and_the_command_line_are_one_configuration(capsys, tmp_path):
    """What is valid only together is taken; a mistake may be in either."""
    options, run = tmp_path / "options.json", tmp_path / "run"
    options.write_text(json.dumps({"method": "noisin*", "gamma": [0.05], "hidden": 6, "epochs": 1}))
    arguments = ["train", "--config", str(options), "--run-dir", str(run), "--quiet"]
    assert f"in the command line with {options}, gamma starts at 0.05" in refused(capsys, *arguments)
    assert "with --lower-bound 0.1" in refused(capsys, *arguments)
    assert main([*arguments, "--lower-bound", "0.01"]) == 0
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["gamma"], config["lower_bound"]) == ([0.05], 0.01)


def test_train_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for entry in dataclasses.fields(Config):
        assert f"--{entry.name.replace('_', '-')}" in text
        assert " ".join(entry.metadata["help"].split()) in text
    assert text.count("(default: ") >= len(dataclasses.fields(Config))


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_needs_no_mxnet_loads_none(option):
    loaded = "sorted({'mxnet', 'numpy', 'pandas', 'gluonnlp'} & set(sys.modules))"
    code = f"import atexit, sys; atexit.register(lambda: print({loaded})); import noisin.commands.main as m; m.main()"
    result = run_process([sys.executable, "-c", code, option])
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    if command in ("evaluate", "runs"):
        for name in ("clean", "bound", "averaged", "averaged_limit", "marginal"):
            assert re.search(f"^  {name} +[a-z].*[a-z]$", printed, re.MULTILINE)


def test_the_help_of_tune_says_what_is_searched(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for entry in dataclasses.fields(Config):
        searched = any(one.option == entry.name for one in SPACE)
        found = re.search(f" --{entry.name.replace('_', '-')} .*?default: ([^)]*)", printed)
        if entry.name in ("method", "eval_samples", "eval_particles"):
            assert found is None
        else:
            assert (found[1] == "searched") == searched


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run on a text of one's own: its folder, with text.txt and run/."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "text.txt").write_text("one two three four\nfive six seven\n" * 400, encoding="utf-8")
    status = main(
        ["train", "--corpus", str(folder / "text.txt"), "--run-dir", str(folder / "run"), "--method", "noisin"]
        + [
            "--hidden",
            "16",
            "--epochs",
            "8",
            "--learning-rate",
            "0.03",
            "--batch-size",
            "8",
            "--unroll",
            "10",
            "--quiet",
        ]
    )
    assert status == 0
    return folder


def test_training_says_how_much_of_a_text_it_leaves_out(tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text("one two three four\n" * 700)
    training = ["--corpus", str(tmp_path / "text.txt"), "--hidden", "2", "--epochs", "1"]
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["tune", "--trials", "1"]):
        assert main([*command, *training]) == 0
        assert "559 of the training split's 2,800 tokens (20%)" in capsys.readouterr().out
    assert main(["train", *training, "--unroll", "29"]) == 0
    assert "training split" not in capsys.readouterr().out


def test_evaluate_prints_the_three_perplexities_of_the_record(own_run, capsys):
    assert main(["evaluate", str(own_run / "run"), "--split", "test"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = json.loads((own_run / "run" / "record.json").read_text())
    text = {"corpus": "text.txt", "split": "test", "tokens": 360}
    assert printed == {**text, **record["test_ppl"]}
    assert printed["bound"] >= printed["averaged"] > 1


def test_evaluate_looks_at_the_validation_split_unless_told_otherwise(own_run, capsys):
    found = []
    for seed in ("0", "0", "1"):
        assert main(["evaluate", str(own_run / "run"), "--seed", seed]) == 0
        found.append(json.loads(capsys.readouterr().out))
    record = json.loads((own_run / "run" / "record.json").read_text())
    for one in found:
        assert one["split"] == "valid" and one["clean"] == pytest.approx(record["valid_ppl"], rel=1e-6)
    assert found[0] == found[1] and found[0]["bound"] != found[2]["bound"]


def test_more_samples_than_fit_into_memory_are_refused(own_run, capsys, monkeypatch):
    monkeypatch.setattr("noisin.model.MEMORY", 2**20)
    assert "of memory or more" in refused(capsys, "evaluate", str(own_run / "run"), "--samples", "1000")


def test_a_run_may_be_looked_at_with_less_memory_than_its_training_took(own_run, capsys, monkeypatch):
    run = str(own_run / "run")
    config = RunDirectory(run).read_config()
    monkeypatch.setattr("noisin.model.MEMORY", 2**20)
    monkeypatch.chdir(own_run)  # where robustness draws
    for command, options in (("evaluate", {}), ("robustness", {}), ("sample", {"eval_samples": 1000})):
        wide = dataclasses.replace(config, batch_size=100_000, **options)
        monkeypatch.setattr(RunDirectory, "read_config", lambda _, wide=wide: wide)
        assert main([command, run]) == 0


@pytest.mark.parametrize("command, says", [("train", "the same command resumes"), ("evaluate", "nothing is left half")])
def test_an_interruption_says_what_it_leaves(own_run, capsys, monkeypatch, command, says):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("noisin.commands.options.initial_model", interrupted)
    monkeypatch.setattr("noisin.commands.train.train", interrupted)
    run = str(own_run / "run")
    assert main(["train", "--quiet"] if command == "train" else [command, run]) == 130
    error = capsys.readouterr().err
    assert error.startswith(f"noisin: interrupted; {says}") and error.count("\n") == 1


def test_an_interruption_while_a_command_is_imported_is_one_line(capsys, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("noisin.commands.main.import_module", interrupted)
    assert main(["sample", "RUN"]) == 130
    assert capsys.readouterr().err == "noisin: interrupted; nothing is left half-written\n"


def test_sample_writes_what_the_model_has_learned(own_run, capsys):
    assert main(["sample", str(own_run / "run"), "--temperature", "0", "--words", "8", "--prompt", "one two"]) == 0
    # After "seven" or "four" either line may begin.
    assert capsys.readouterr().out.startswith("one two three four\n")


def test_sample_repeats_by_seed_and_differs_by_seed(own_run, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["sample", str(own_run / "run"), "--temperature", "3", "--words", "60", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_sample_says_which_words_it_does_not_know(own_run, capsys):
    assert main(["sample", str(own_run / "run"), "--words", "1", "--prompt", "one zebra"]) == 0
    captured = capsys.readouterr()
    assert "read as <unk>: zebra" in captured.err and captured.out.startswith("one zebra ")


def test_sample_leaves_unknown_words_out_if_asked_to(own_run, capsys):
    command = ["sample", str(own_run / "run"), "--temperature", "1000", "--words", "300"]  # any word is as likely
    assert main(command) == 0
    assert "<unk>" in capsys.readouterr().out
    assert main([*command, "--no-unk"]) == 0
    assert "<unk>" not in capsys.readouterr().out


def evaluated(capsys, run, *options):
    """What `noisin evaluate` prints, as an object, and what it says beside that."""
    assert main(["evaluate", str(run), "--samples", "2", *map(str, options)]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_the_runs_text_with_other_types_is_not_the_runs(capsys, tmp_path):
    """As a program can do, which gives `train` a corpus of its own: ids of another vocabulary would be wrong words."""
    text = tmp_path / "text.txt"
    text.write_text("one two three four\nfive six seven\n" * 100, encoding="utf-8")
    config = Config(corpus=str(text), hidden=8, epochs=1, batch_size=8, unroll=10)
    train(config, tmp_path / "run", load_corpus(str(text), max_vocabulary=5), report=len, progress=False)
    for command in ("evaluate", "robustness"):
        assert "not trained on text.txt as it is now" in refused(capsys, command, str(tmp_path / "run"))
    found, notes = evaluated(capsys, tmp_path / "run", "--corpus", text)
    assert found["split"] == "all" and "400 of 700 words" in notes


def test_a_text_that_has_moved_is_the_runs(own_run, capsys, tmp_path):
    moved = tmp_path / "moved.txt"
    moved.write_bytes((own_run / "text.txt").read_bytes())
    found, notes = evaluated(capsys, own_run / "run", "--corpus", moved, "--split", "test")
    here, _ = evaluated(capsys, own_run / "run", "--split", "test")
    assert {**found, "corpus": ""} == {**here, "corpus": ""} and notes == ""


def test_another_text_is_evaluated_in_the_runs_words(own_run, capsys, tmp_path):
    """Its own vocabulary is another one; one file is evaluated whole, of a folder the split."""
    run, whole = own_run / "run", tmp_path / "whole.txt"
    lines = ["zebra one two three four", "five six seven"] * 30
    whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found, notes = evaluated(capsys, run, "--corpus", whole)
    assert (found["corpus"], found["split"], found["tokens"]) == ("whole.txt", "all", 30 * 10)
    assert notes == "noisin: 30 of 240 words (12.5%) are not in the run's vocabulary and count as <unk>\n"
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("four three two\n" if split == "train" else "one two three four\n" * 40)
    by_split = {split: evaluated(capsys, run, "--corpus", folder, "--split", split)[0] for split in ("valid", "test")}
    assert by_split["valid"]["tokens"] == 200 and by_split["valid"]["clean"] == by_split["test"]["clean"]
    # The same words as the run's own test split, from another vocabulary: the same perplexity.
    own = load_corpus(str(own_run / "text.txt"))
    text = " ".join(own.vocabulary.idx_to_token[i] for i in own.test).replace(" <eos>", "\n")
    (folder / "test.txt").write_text(text, encoding="utf-8")
    again, notes = evaluated(capsys, run, "--corpus", folder, "--split", "test")
    assert again["clean"] == evaluated(capsys, run, "--split", "test")[0]["clean"]
    assert notes == ""
    one_line = tmp_path / "line.txt"
    one_line.write_text("one <unk> zebra", encoding="utf-8")  # too short to be a corpus
    found, notes = evaluated(capsys, run, "--corpus", one_line)
    assert found["tokens"] == 4 and ": 1 of 3 words" in notes
    assert "no such corpus or file" in refused(capsys, "evaluate", str(run), "--corpus", str(tmp_path / "gone.txt"))
    assert "the name of the corpus is empty" in refused(capsys, "evaluate", str(run), "--corpus", "")
    split = ("--corpus", str(one_line), "--split", "test")
    assert "--split has no effect" in refused(capsys, "evaluate", str(run), *split)


def test_a_published_text_is_evaluated_in_the_runs_words(capsys, tmp_path, monkeypatch):
    """Also where the run was trained on the same text, as one's own, with a smaller vocabulary."""
    texts = {split: f"one two three {split}\n".encode() * 300 for split in ("train", "valid", "test")}
    ptb = dataclasses.replace(
        PUBLISHED["ptb"],
        sizes={split: len(text) for split, text in texts.items()},
        sha256={split: hashlib.sha256(text).hexdigest() for split, text in texts.items()},
    )
    monkeypatch.setitem(PUBLISHED, "ptb", ptb)
    monkeypatch.setenv("NOISIN_DATA", str(tmp_path / "data"))
    for folder, name in ((tmp_path / "data" / "ptb", "ptb.{}.txt"), (tmp_path / "own", "{}.txt")):
        folder.mkdir(parents=True)
        for split, text in texts.items():
            (folder / name.format(split)).write_bytes(text)
    run, own = tmp_path / "run", tmp_path / "own"
    assert main(["train", "--corpus", str(own), "--run-dir", str(run), "--max-vocabulary", "4", *QUICK]) == 0
    capsys.readouterr()
    by_own, by_published = evaluated(capsys, run)[0], evaluated(capsys, run, "--corpus", "ptb")[0]
    assert {**by_published, "corpus": ""} == {**by_own, "corpus": ""}


def test_evaluate_estimates_the_marginal_likelihood_if_asked_to(own_run, capsys, tmp_path):
    run = own_run / "run"
    without, _ = evaluated(capsys, run)
    found, _ = evaluated(capsys, run, "--particles", 8, "--repetitions", 2)
    assert {name: found[name] for name in without} == without
    assert set(found) - set(without) == {
        *("marginal", "marginal_deviation", "effective_particles", "particles", "repetitions")
    }
    assert (found["particles"], found["repetitions"]) == (8, 2) and 1 <= found["effective_particles"] <= 8
    assert found["clean"] * 0.9 < found["marginal"] <= found["bound"] * 1.01
    for mistake in ("0", "-1", "many"):
        assert "--particles" in refused(capsys, "evaluate", str(run), "--particles", mistake)
    assert "of memory or more" in refused(capsys, "evaluate", str(run), "--particles", "999999999")
    assert main(["train", "--run-dir", str(tmp_path / "none"), *QUICK]) == 0
    capsys.readouterr()
    found, _ = evaluated(capsys, tmp_path / "none", "--particles", "999999999")  # without noise one is enough
    assert found["particles"] == 1 and found["marginal"] == pytest.approx(found["clean"], rel=1e-5)


def test_a_text_that_has_changed_is_said(own_run, capsys):
    run, text = own_run / "run", own_run / "text.txt"
    before = text.read_bytes()
    try:
        text.write_text("one two three\n" * 50, encoding="utf-8")
        says = "not trained on text.txt as it is now"
        assert says in refused(capsys, "evaluate", str(run)) and "--corpus" in refused(capsys, "evaluate", str(run))
    finally:
        text.write_bytes(before)


def edit_config(run, edit):
    """Change the `config.json` of a run and seal it anew."""
    content = json.loads((run / "config.json").read_text())
    edit(content)
    (run / "config.json").write_text(json.dumps(seal(content)))


def test_sampling_needs_no_text(own_run, capsys, tmp_path):
    shutil.copytree(own_run / "run", tmp_path / "run")
    edit_config(tmp_path / "run", lambda content: content["config"].update(corpus=str(tmp_path / "gone.txt")))
    arguments = ["--temperature", "0", "--words", "4", "--prompt", "one two"]
    assert main(["sample", str(tmp_path / "run"), *arguments]) == 0
    assert capsys.readouterr().out.startswith("one two three four\n")
    moved = refused(capsys, "evaluate", str(tmp_path / "run"))
    assert "gone.txt" in moved and moved.endswith("if the text of this run has moved, say where it is with --corpus\n")
    elsewhere = refused(capsys, "evaluate", str(tmp_path / "run"), "--corpus", "nowhere.txt")
    assert "nowhere.txt" in elsewhere and "moved" not in elsewhere
    (tmp_path / "run" / "vocabulary.txt").unlink()
    assert "repeat the command that trained" in refused(capsys, "sample", str(tmp_path / "run"))


@pytest.mark.parametrize("lost", ["state.json", "best-0008.safetensors"])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_lost_of_a_finished_run_is_said_by_every_command(own_run, capsys, tmp_path, lost, damaged):
    """None of them calls the run finished, or advises what another one refuses."""
    shutil.copytree(own_run / "run", tmp_path / "run")
    path = tmp_path / "run" / lost
    if damaged:
        path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    else:
        path.unlink()
    again = ["--config", str(tmp_path / "run" / "config.json"), "--run-dir", str(tmp_path / "run"), "--quiet"]
    more = [] if lost.startswith("best") else [["train", *again, "--epochs", "9"]]
    for command in (["train", *again], ["evaluate", str(tmp_path / "run")], *more):
        said = refused(capsys, *command)
        assert f"{path} is {'damaged: ' if damaged else 'missing; '}" in said
        assert said.endswith("restore the file, or train again with another --run-dir\n")
    if lost == "state.json":
        assert f"{path} is " in refused(capsys, "runs", str(tmp_path))


def test_a_run_is_not_begun_in_a_folder_of_runs(own_run, capsys):
    arguments = ["train", "--run-dir", str(own_run), *QUICK]
    assert f"{own_run} contains runs but is not a run directory" in refused(capsys, *arguments)


def test_a_text_that_has_moved_is_asked_for(own_run, capsys, tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"corpus": "gone.txt"}))
    for option in (["--config", str(tmp_path / "options.json")], ["--corpus", "gone.txt"]):
        said = refused(capsys, "train", *option)
        assert "gone.txt" in said and said.endswith("has moved, say where it is with --corpus\n")


def test_the_default_run_directory_is_named_after_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--method", "noisin*", "--gamma", "0.2", *QUICK]) == 0
    config = Config(method="noisin*", gamma=[0.2], hidden=8, epochs=1)
    (found,) = (tmp_path / "runs").iterdir()
    assert found.name == run_name(config, load_corpus("synthetic"))
    assert found.name.startswith("rnn-sigmoid-1x8-noisin-learned-seed1-")
    assert capsys.readouterr().out.splitlines()[-1].startswith("finished: best epoch 1, valid ")
    assert main(["train", "--method", "noisin*", "--gamma", "0.2", *QUICK, "--epochs", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"run runs/{found.name}", "resuming after epoch 1"]
    assert list((tmp_path / "runs").iterdir()) == [found]


def test_one_text_is_one_run_wherever_it_lies_and_however_it_is_spelled(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    text, moved = tmp_path / "base.txt", tmp_path / "moved" / "other.txt"
    text.write_text("one two three four\nfive six seven\n" * 60)
    options = [*QUICK[:2], "--quiet", "--batch-size", "4", "--unroll", "5"]
    for epochs, corpus in enumerate(("base.txt", "./base.txt", str(text), str(moved)), 1):
        if corpus == str(moved):
            moved.parent.mkdir()
            text.rename(moved)
        assert main(["train", "--corpus", corpus, *options, "--epochs", str(epochs)]) == 0
        (run,) = (tmp_path / "runs").iterdir()
        assert len(json.loads((run / "record.json").read_text())["epochs"]) == epochs
    assert main(["evaluate", str(run), "--split", "test"]) == 0  # it is found where the last command found it
    assert main(["train", "--corpus", str(moved), *options, "--epochs", "4", "--run-dir", "whole"]) == 0
    whole, parts = (json.loads((folder / "record.json").read_text()) for folder in (Path("whole"), run))
    assert without_times(whole) == without_times(parts)
    capsys.readouterr()
    moved.write_text("one two three four\nfive six seven\n" * 61)
    arguments = ["train", "--corpus", str(moved), *options, "--epochs", "4"]
    assert "holds another run (the text is another one)" in refused(capsys, *arguments, "--run-dir", str(run))


def test_a_training_that_diverged_has_a_status_of_its_own(tmp_path, capsys):
    options = ["--optimizer", "sgd", "--learning-rate", "1000", "--activation", "relu", "--clip", "1e6"]
    arguments = ["train", "--run-dir", str(tmp_path / "run"), *options, *QUICK]
    for _ in range(2):  # also where nothing is left to do
        assert main(arguments) == 3
        captured = capsys.readouterr()
        assert "diverged: no epoch was finished" in captured.out
        assert re.fullmatch(
            r"noisin: error: the training diverged in epoch 1, batch \d+ \(step \d+\): .*; no epoch was finished; .*\n",
            captured.err,
        )
    assert "its training diverged in the first epoch" in refused(capsys, "evaluate", str(tmp_path / "run"))
    untested = tmp_path / "untested"  # which leaves no less behind
    assert main([*arguments, "--run-dir", str(untested), "--no-test"]) == 3
    capsys.readouterr()
    assert "its training diverged in the first epoch" in refused(capsys, "evaluate", str(untested))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "diverged ends with status 3" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("lacking", ["avx512f", "avx512bw", "avx512dq", "avx512vl"])
def test_bfloat16_is_refused_on_a_processor_without_avx512_before_anything_is_written(
    own_run, capsys, monkeypatch, tmp_path, lacking
):  # fmt: skip
    has = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    arguments = [
        "train",
        "--corpus",
        str(own_run / "text.txt"),
        *QUICK,
        "--run-dir",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("noisin.system.device.processor_features", lambda: has - {lacking})
    assert "use float32" in refused(capsys, *arguments, "--dtype", "bfloat16")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("noisin.system.device.processor_features", lambda: has)
    check_dtype("bfloat16", mx.cpu())


def test_what_the_processor_can_do_is_what_the_system_says(monkeypatch, tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    monkeypatch.setattr("noisin.system.device.Path", lambda name: {"/proc/cpuinfo": told}[name])
    assert processor_features() == {"fpu", "avx2", "avx512_bf16"}
    told.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert processor_features() == set()
    told.unlink()
    assert processor_features() == set()


def test_python_m_noisin_is_the_command():
    for command in ([sys.executable, "-m", "noisin"], [os.path.join(os.path.dirname(sys.executable), "noisin")]):
        result = subprocess.run([*command, "train", "--hidden", "0"], capture_output=True, text=True)
        assert result.returncode == 2
        assert result.stderr.startswith("noisin train: error: argument --hidden: '0' is invalid")


def test_memory_that_cannot_be_had_is_one_line(monkeypatch, capsys):
    def full(*_, **__):
        raise mx.MXNetError("[12:00:00] ../src/storage.h:101: Failed to allocate CPU Memory")

    def bad(*_, **__):
        raise mx.MXNetError("std::bad_alloc")

    silenced = []
    monkeypatch.setattr(atexit, "unregister", silenced.append)
    for failing in (full, bad, lambda *_, **__: np.empty(2**62, np.int8)):
        monkeypatch.setattr("noisin.commands.data.load_corpus", failing)
        assert "the memory is full" in refused(capsys, "data", "synthetic")
    assert silenced == 3 * [mx.base._notify_shutdown]  # which would print a traceback at the end
    monkeypatch.setattr("noisin.commands.data.load_corpus", lambda *_, **__: mx.nd.ones(3) + mx.nd.ones(4))
    with pytest.raises(mx.MXNetError):  # a defect is no mistake of the user's
        main(["data", "synthetic"])


def test_words_are_no_commands_to_the_terminal(own_run, capsys, tmp_path):
    shutil.copytree(own_run / "run", tmp_path / "run")
    vocabulary = tmp_path / "run" / "vocabulary.txt"
    vocabulary.write_text(vocabulary.read_text().replace("three", "\x1b[31mthree"))
    digest = hashlib.sha256(vocabulary.read_bytes()).hexdigest()
    edit_config(tmp_path / "run", lambda content: content.update(vocabulary_sha256=digest))
    arguments = ["--temperature", "0", "--words", "2", "--prompt", "one two"]
    assert main(["sample", str(tmp_path / "run"), *arguments]) == 0
    assert capsys.readouterr().out.startswith("one two \\x1b[31mthree four")
    edit_config(tmp_path / "run", lambda content: content["config"].update(corpus=str(own_run / "text.txt")))
    again = ["train", "--config", str(tmp_path / "run" / "config.json"), "--run-dir", str(tmp_path / "run")]
    assert "its word types differ although the text is the same" in refused(capsys, *again)


def test_a_temperature_of_nearly_0_takes_the_likeliest_word_without_a_warning(own_run, capsys, recwarn):
    arguments = ["--temperature", "1e-320", "--words", "2", "--prompt", "one two"]
    assert main(["sample", str(own_run / "run"), *arguments]) == 0
    assert capsys.readouterr().out.startswith("one two three four")
    assert not [warning for warning in recwarn.list if Path(warning.filename).parent.name == "noisin"]


def test_an_output_that_is_closed_is_no_mistake():
    command = f"{sys.executable} -m noisin data synthetic >&-"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_closed_pipe_ends_a_command_quietly_with_the_status_that_other_commands_have_then():
    command = f"{sys.executable} -m noisin data synthetic | true"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (141, "")  # not 0: a training that it ends has not finished


@pytest.mark.parametrize("module, arguments", [("noisin", ["data", "synthetic"]), ("experiments", ["report"])])
def test_a_full_disk_behind_the_output_is_one_line(tmp_path, module, arguments):
    if module == "experiments":
        (tmp_path / "run").mkdir()
        shutil.copy(next(ROOT.glob("experiments/results/figure2/*.json")), tmp_path / "run" / "record.json")
        arguments = [*arguments, "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", module, *arguments]
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (
        2,
        f"{module}: error: cannot write the output: No space left on device\n",
    )
