"""Records: what was changed by hand, is of another type, or contradicts itself is one line that names the file."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from helpers.records import make_up_record

from experiments.catalogue import DEMO
from experiments.grid.runner import run_grid
from experiments.records import file_record, load_records
from noisin.commands.main import main
from noisin.config import Config
from noisin.runs.formats import seal
from noisin.runs.record import check_record, read_record, write_record
from noisin.system.errors import UserError

CONFIG = Config(corpus="ptb", method="noisin", layers=2, epochs=3)
GAMMA = [0.1 + 0.2, 1e-7]  # floats that not every way of writing them brings back
NOTHING = {"epochs": [], "best_epoch": None, "valid_ppl": None, "test_ppl": None, "gamma": []}
TEST = {"clean": 51.25, "bound": 53.5, "averaged": 52.125, "samples": 10}


def record_of(config=CONFIG, **changes):
    """A record of three epochs, not sealed yet."""
    gamma = GAMMA if "noisin" in config.method else []
    rates = {"seconds": 2.5, "tokens_per_second": 9.5, "gamma": gamma}
    epochs = [{"epoch": n, "train_ppl": 90.0 / n, "valid_ppl": 50.0 + (n - 2) ** 2, **rates} for n in (1, 2, 3)]
    return {**make_up_record(config, epochs, 2, dict(TEST)), "status": "finished", **changes}


def refusal(path):
    """The line that a record is refused with."""
    with pytest.raises(UserError) as error:
        read_record(path)
    line = str(error.value)
    assert str(path) in line and "\n" not in line and len(line) < 1000
    return line


def test_a_sealed_record_comes_back_and_the_seal_says_nothing_of_the_order_or_layout(tmp_path):
    record = seal(record_of())
    write_record(tmp_path / "a.json", record)
    assert read_record(tmp_path / "a.json") == record
    turned = json.dumps(dict(reversed(list(record.items()))), indent=7)
    (tmp_path / "b.json").write_text(turned)
    assert read_record(tmp_path / "b.json") == record
    assert re.fullmatch(r"[0-9a-f]{64}", record["digest"]) and seal(record) == record


@pytest.mark.parametrize("layers, expected", [(1, "top"), (2, "every")])
def test_a_record_from_before_dropout_became_gal_and_ghahramanis_is_of_what_it_was(tmp_path, layers, expected):
    config = Config(corpus="ptb", method="dropout", layers=layers, epochs=3)
    assert config.dropout_output_layers == "top"
    record = record_of(config)
    del record["config"]["dropout_output_layers"]
    assert check_record(seal(record), "") == dataclasses.replace(config, dropout_output_layers=expected)
    assert check_record(seal(record_of(config)), "") == config


def test_a_limit_above_the_average_is_refused(tmp_path):
    record = record_of()
    for limit, error, wrong in ((52.0, 0.1, None), (None, None, None), (53.0, 0.1, "limit"), (52.0, -0.1, "error is")):
        record["test_ppl"].update(averaged_limit=limit, averaged_limit_error=error)
        if wrong is None:
            check_record(seal(record), "")
        else:
            with pytest.raises(UserError, match=wrong):
                check_record(seal(record), "")


def test_a_record_that_is_not_sound_is_not_written(tmp_path):
    for record in (record_of(), {**seal(record_of()), "valid_ppl": 49.0}, seal(record_of(valid_ppl=49.0))):
        with pytest.raises(UserError, match=r"bad\.json"):
            write_record(tmp_path / "bad.json", record)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "old, new",
    [
        ('"averaged": 52.125', '"averaged": 51.125'),  # the numbers of the tables
        ('"clean": 51.25', '"clean": 51.250000000000007'),  # by the last bit
        ('"valid_ppl": 50.0', '"valid_ppl": 49.0'),  # all of them, so that nothing contradicts
        ('"train_ppl": 30.0', '"train_ppl": 31.0'),
        ('"seconds": 2.5', '"seconds": 1.5'),
        ('"git": "0123abc"', '"git": "abc0123"'),
        ('"learning_rate": 0.001', '"learning_rate": 0.002'),
        ('"epochs": 3', '"epochs": 3, "remark": ""'),
    ],
)
def test_a_record_that_was_edited_is_refused(tmp_path, old, new):
    path = tmp_path / "run.json"
    write_record(path, seal(record_of()))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert "was changed after it was written" in refusal(path)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"test_ppl": {"clean": 51.0, "bound": 53.5, "samples": 10}}, "test_ppl has no 'averaged'"),
        (
            {"test_ppl": {"clean": -1.0, "bound": 2.0, "averaged": 1.0, "samples": 1}},
            "test_ppl clean is -1.0, not",
        ),
        ({"test_ppl": {"clean": 1.0, "bound": 2.0, "averaged": 3.0, "samples": 1}}, "averaged .* above its bound"),
        ({"test_ppl": None}, "test_ppl is None, not an object"),
        ({"test_ppl": {**TEST, "samples": 10**30}}, "test_ppl samples is 1000000000"),
        ({"test_ppl": {**TEST, "bound": 1.7e308}}, r"test_ppl bound is 1.7e\+308, not a perplexity, from 1 to 1e\+100"),
        ({"test_ppl": {**TEST, "averaged_limit": 52.0}}, "only one of 'averaged_limit' and"),
        ({"test_ppl": {**TEST, "clean": 0.5}}, "test_ppl clean is 0.5, not a perplexity"),
        ({"parameters": True}, "parameters is True, not a whole number from 1"),
        ({"floor_ppl": 10**400}, "a number of 401 digits"),
        ({"status": "running"}, "status is 'running', not one of finished, early-stopped, diverged"),
        ({"status": ["finished"]}, "status is"),
        ({"epochs": {}}, "epochs is {}, not a list of at most 10000"),
        ({"epochs": [3]}, "epochs 1 is 3, not an object"),
        ({"epochs": []}, "best_epoch is 2, but its best epoch makes it None"),
        ({**NOTHING, "status": "early-stopped"}, "has not diverged, without any epoch"),
        ({"epochs": record_of()["epochs"][1:]}, "not numbered 1, 2"),
        ({"epochs": record_of()["epochs"][:2]}, "finished after 2 epochs of 3"),
        ({"best_epoch": 3}, "best_epoch is 3, but its best epoch makes it 2"),
        ({"best_epoch": 4}, "best_epoch is 4"),
        ({"valid_ppl": 49.0}, "valid_ppl is 49.0, but its best epoch makes it 50.0"),
        ({"valid_ppl": None}, "valid_ppl is None, but"),
        ({"gamma": [0.3]}, r"gamma is \[0.3\], but"),
        ({"gamma": "0.3"}, "gamma is '0.3', not a list"),
        ({"method": "none"}, "method is 'none', but 'noisin' in its configuration"),
        ({"seed": True}, "seed is True, but 1 in"),
        ({"hidden": 2.0}, "hidden is 2.0, but 256 in"),
        ({"noise": None}, "noise is None, but 'gaussian' in"),
        ({"corpus": "wikitext-2"}, "corpus is 'wikitext-2', but 'ptb' in"),
        ({"corpus": "mine"}, "corpus is 'mine', but 'ptb' in"),
        ({"config": {**CONFIG.to_dict(), "hidden": "many"}}, "in its configuration, hidden is 'many'"),
        ({"config": {**CONFIG.to_dict(), "unheard_of": 1}}, "unknown option 'unheard_of'"),
        ({"config": {**CONFIG.to_dict(), "method": "none"}}, "method is 'noisin', but 'none' in"),
        ({"config": {**CONFIG.to_dict(), "epochs": 2}}, "3 epochs of 2"),
        ({"hardware": {"cpu": "x", "threads": 0, "device": "cpu(0)"}}, "hardware threads is 0"),
        ({"versions": {"mxnet": 1.9}}, "versions mxnet is 1.9, not text"),
        ({"started": "yesterday"}, "started is 'yesterday', not a time"),
        ({"corpus_sha256": "0"}, "corpus_sha256 is '0'"),
        ({"parameters": 10**30}, "parameters is 1000000000"),
        ({"epochs": record_of()["epochs"] * 4000}, "epochs is .*, not a list of at most 10000"),
        ({"gamma": [0.1] * 65}, "gamma is .*, not a list of numbers, at most 64"),
        ({"reason": "x" * 301}, "reason is 'xxx.*, not text of at most 300 characters"),
        ({"reason": "a\x1b[2J"}, "reason is .*, not text of at most 300 characters, none of them for control"),
        ({"corpus": "a\nb"}, "corpus is"),
        ({"git": "0123abc-dirty"}, "git is '0123abc-dirty', not commits"),
        ({"git": "0123abc,0123abc"}, "git is"),
        ({"git": ""}, "git is ''"),
        ({"versions": {"x" * 41: "1"}}, "versions is .*, not names with texts, at most 20"),
        ({"versions": {f"p{number}": "1" for number in range(21)}}, "versions is .*, at most 20"),
        ({"hardware": {"cpu": "x", "threads": [1, 0], "device": "cpu"}}, "hardware threads 2 is 0"),
        ({"hardware": {"cpu": "x", "threads": 10**9, "device": "cpu"}}, "hardware threads is 1000000000"),
        ({"hardware": {"cpu": "x\x00", "threads": 1, "device": "cpu"}}, "hardware cpu is"),
        ({"remark": {"a" * 10: {"b": 1}}}, "it has the unknown field 'remark'"),
    ],
)
def test_what_no_run_writes_is_refused_even_if_it_is_sealed(tmp_path, changes, says):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(seal({**record_of(), **changes})))
    assert re.search(says, refusal(path))


@pytest.mark.parametrize("name", [*record_of(), "digest"])
def test_no_field_may_be_missing(tmp_path, name):
    record = record_of()
    record.pop(name, None)
    (tmp_path / "run.json").write_text(json.dumps(record if name == "digest" else seal(record)))
    assert f"it has no '{name}'" in refusal(tmp_path / "run.json")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"valid_ppl": NaN}', "NaN is no number"),
        ('{"valid_ppl": -Infinity}', "-Infinity is no number"),
        ('{"valid_ppl": 1, "valid_ppl": 2}', "a name is there twice"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 950 + "1" + "}" * 950, "no 'digest'|not JSON"),
        ('{"valid_ppl": "\\ud800"}', "no 'digest'|not JSON"),
        ('{"valid_ppl": 1e999, "digest": "0"}', "was changed|not JSON"),
        ("\xff", "not JSON|no 'digest'"),
    ],
)
def test_what_is_no_json_object_is_one_line(tmp_path, text, says):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    assert re.search(says, refusal(tmp_path / "run.json"))


def test_a_run_that_diverged_at_once_has_a_record_without_numbers(tmp_path):
    write_record(tmp_path / "run.json", seal(record_of(**NOTHING, status="diverged")))
    assert read_record(tmp_path / "run.json")["status"] == "diverged"
    for changes in ({"status": "finished"}, {"valid_ppl": 3.0}, {"gamma": [0.1, 0.1]}):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(seal(record_of(**{**NOTHING, "status": "diverged", **changes}))))
        assert refusal(path)


# ---- wherever records are read -------------------------------------------------------------------------------------


def edit(path):
    """Improve a perplexity."""
    text = path.read_text()
    assert '"averaged": ' in text
    path.write_text(re.sub(r'"averaged": \d', '"averaged": 1', text))


def test_the_report_the_tables_and_the_grid_refuse_an_edited_record(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs" / "demo" / "records"
    (config,) = DEMO.configs(["none"], epochs=3)
    file_record(folder, config, seal(record_of(config)))
    edit(folder / f"{config.name}.json")
    with pytest.raises(UserError, match="was changed"):
        load_records(folder)
    from experiments.__main__ import main as compare

    monkeypatch.chdir(tmp_path)
    assert compare(["demo", "--epochs", "3", "--methods", "none"]) == 2
    error = capsys.readouterr().err
    assert f"{config.name}.json" in error and "was changed" in error and error.count("\n") == 1


QUICK = ("--hidden", "4", "--batch-size", "100", "--epochs", "1", "--quiet")


def test_a_finished_run_whose_record_was_edited_is_refused_and_listed_as_damaged(tmp_path, capsys):
    arguments = ["train", "--run-dir", str(tmp_path / "run"), *QUICK]
    assert main(arguments) == 0
    edit(tmp_path / "run" / "record.json")
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"noisin: error: {tmp_path / 'run' / 'record.json'} is not") and error.count("\n") == 1
    assert main(["runs", str(tmp_path)]) == 2
    assert re.search(r"^ *run +damaged", capsys.readouterr().out, re.MULTILINE)


def test_a_run_directory_with_the_record_of_another_run_is_refused(tmp_path, capsys):
    for seed in ("1", "2"):
        assert main(["train", "--run-dir", str(tmp_path / seed), *QUICK, "--seed", seed]) == 0
    (tmp_path / "1" / "record.json").write_bytes((tmp_path / "2" / "record.json").read_bytes())
    capsys.readouterr()
    assert main(["train", "--run-dir", str(tmp_path / "1"), *QUICK, "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert "record.json is another run's record" in error and error.count("\n") == 1


def test_the_grid_files_nothing_but_the_sound_record_of_the_run_itself(tmp_path, capsys):
    own, other = (Config(corpus="ptb", seed=seed, epochs=3) for seed in (1, 2))
    for record in (record_of(own), seal(record_of(other)), {**seal(record_of(own)), "valid_ppl": 1.0}, {}):

        def engine(jobs, relay, record=record):
            yield next(iter(jobs)), record

        assert run_grid([own], tmp_path / "runs", tmp_path / "results", engine) == ([], [own.name])
        assert capsys.readouterr().out.count("\n") == 1
        assert not (tmp_path / "results").exists()
