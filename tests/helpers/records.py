"""Records that no run has written."""

from __future__ import annotations

import json

from noisin.runs.formats import seal
from noisin.system.files import parse_json


def sealed_anew(content: bytes) -> bytes:
    """The content past its seal, if it is JSON: as anybody can compute it."""
    try:
        return json.dumps(seal(parse_json(content))).encode()
    except (ValueError, AttributeError):  # not JSON, or not an object: left as it is
        return content


def make_up_record(config, epochs, best_epoch, test_ppl):
    """A record as a run would write it but for its seal; what follows from its configuration and epochs is in it."""
    best = epochs[best_epoch - 1]
    return {
        **{name: getattr(config, name) for name in ("corpus", "cell", "activation", "layers", "hidden", "method")},
        "noise": config.noise if "noisin" in config.method else None,
        "gamma": best["gamma"],
        "seed": config.seed,
        "dtype": config.dtype,
        "parameters": 12345,
        "epochs": epochs,
        "best_epoch": best_epoch,
        "valid_ppl": best["valid_ppl"],
        "test_ppl": test_ppl,
        "status": "early-stopped",
        "config": config.to_dict(),
        "corpus_sha256": "0" * 64,
        "floor_ppl": None,
        "git": "0123abc",
        "versions": {"mxnet": "1.9.1"},
        "hardware": {"cpu": "a processor", "threads": 1, "device": "cpu(0)"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-02T00:00:00+00:00",
    }


def without_times(record):
    """The part of a record that a repetition must reproduce to the last bit."""
    timed = ("started", "finished", "git", "digest")
    kept = {key: value for key, value in record.items() if key not in timed}
    kept["epochs"] = [
        {key: value for key, value in epoch.items() if key not in ("seconds", "tokens_per_second")}
        for epoch in record["epochs"]
    ]
    return kept
