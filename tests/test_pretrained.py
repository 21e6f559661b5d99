"""The models that come with the package: small, whole, and as good as their cards say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from noisin.commands.main import main
from noisin.data.published import PUBLISHED
from noisin.pretrained import PRETRAINED
from noisin.runs.directory import RunDirectory

MOST = 5e6  # bytes of one model


@pytest.mark.smoke
@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_model_writes_text(capsys, name):
    assert main(["sample", "--pretrained", name, "--words", "30", "--no-unk"]) == 0
    written = capsys.readouterr().out.split()
    types = set(RunDirectory(PRETRAINED[name]).read_vocabulary())
    assert len(written) > 20 and set(written) <= types and "<unk>" not in written


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_model_is_small_and_has_nothing_but_what_is_used(name):
    files = {path.name: path.stat().st_size for path in PRETRAINED[name].iterdir()}
    assert sum(files.values()) < MOST
    (weights,) = (file for file in files if file.endswith(".safetensors"))
    expected = {"README.md", "config.json", "record.json", "state.json", "vocabulary.txt", weights}
    assert set(files) == expected and weights.startswith("best-")


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_card_has_the_numbers_of_the_record(name):
    card = (PRETRAINED[name] / "README.md").read_text(encoding="utf-8")
    record = json.loads((PRETRAINED[name] / "record.json").read_text(encoding="utf-8"))
    numbers = {"validation": record["valid_ppl"], "test, clean": record["test_ppl"]["clean"]}
    numbers["test, averaged"] = record["test_ppl"]["averaged"]
    for measure, value in numbers.items():
        assert f"| {measure} | {value:.1f} |" in card
    assert "CC BY-SA 3.0" in card and record["git"] in card


def test_the_small_model_of_wikitext_2_has_its_perplexity(capsys):
    folder = Path(os.environ.get("NOISIN_DATA", "data"))
    if not all(path.exists() for path in PUBLISHED["wikitext-2"].files(folder).values()):
        pytest.skip(f"WikiText-2 is not in {folder} (set NOISIN_DATA)")
    assert main(["evaluate", "--pretrained", "wikitext2-small", "--corpus", "wikitext-2", "--samples", "1"]) == 0
    record = json.loads((PRETRAINED["wikitext2-small"] / "record.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out)["clean"] == pytest.approx(record["valid_ppl"], rel=1e-4)
