"""What a process needs does not grow with the steps it takes, nor with the text more than it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

# Trains on the synthetic corpus, with evaluations and checkpoints, and prints the resident kilobytes after each epoch.
# The arguments: run directory, epochs, the epoch after which each step leaks a kilobyte (0: none).
TRAINING = """
import os, sys
from pathlib import Path
from noisin.config import Config
from noisin.data.corpus import load_corpus
from noisin.training import TrainingStep, train

directory, epochs, leak = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
PAGE = os.sysconf("SC_PAGE_SIZE") // 1024
leaked, filled, ended = [], [], []
step = TrainingStep.__call__

def leaking_step(*arguments):
    if len(ended) >= leak:
        leaked.append(bytearray(os.urandom(1024)))
    return step(*arguments)

if leak:
    TrainingStep.__call__ = leaking_step

def report(line):
    if line.startswith("epoch"):
        ended.append(line)
        if not filled:  # what has been freed so far, in which a leak would find room unnoticed
            filled.extend(bytearray(1024) for _ in range(20_000))
        print(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)

config = Config(method="noisin*", gamma=[0.3], hidden=4, batch_size=10, unroll=10, epochs=epochs, patience=epochs,
                eval_batch_size=500, eval_samples=1)
train(config, directory, load_corpus("synthetic"), report=report, progress=False)
"""
STEPS = 250  # an epoch's


def resident(directory, epochs, leak=0):
    """Resident kilobytes after each epoch of a process that trains."""
    command = [sys.executable, "-W", "ignore", "-c", TRAINING, str(directory), str(epochs), str(leak)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    return [int(line) for line in output.split()]


def test_memory_does_not_grow_from_step_to_step(tmp_path):
    sizes = resident(tmp_path / "run", 12, leak=7)
    # Kilobytes a step in the median of five epochs: a leak grows in each, an allocator's pool in few.
    without, leaking = (np.median(part) / STEPS for part in np.split(np.diff(sizes)[1:], 2))
    assert without < 0.3
    assert leaking > 0.8, "a leak of a kilobyte a step goes unnoticed: this test cannot fail any more"


@pytest.mark.load(reason="takes 11,000 steps, many minutes; the same is looked for over 1,250")
@pytest.mark.timeout(7200)
def test_memory_of_ten_thousand_steps_grows_less_than_a_hundredth(tmp_path, capsys):
    sizes = resident(tmp_path, 44)  # 10,000 steps after a warm-up of 1,000
    with capsys.disabled():
        print(f"\nresident after 1,000 steps {sizes[3]:,} kB, after 11,000 {sizes[-1]:,} kB; at most {max(sizes):,} kB")
    assert max(sizes) < 1.01 * sizes[3]


# Prepares a text with a vocabulary of a given size, and trains a few steps on it. Prints a JSON object: tokens, types,
# seconds of CPU, and the most memory in MB, before, after the preparation and after the steps.
OWN_TEXT = """
import json, sys, time
import noisin
import mxnet as mx
from noisin.config import Config
from noisin.data.batches import training_batches
from noisin.data.corpus import load_corpus
from noisin.model import initial_model
from noisin.training import TrainingStep
from benchmarks.worker import peak_mib

def peak():
    return round(peak_mib())

import gluonnlp
found = {"before": peak()}
start = time.process_time()
corpus = load_corpus(sys.argv[1], max_vocabulary=int(sys.argv[2]))
found.update(tokens=sum(map(len, (corpus.train, corpus.valid, corpus.test))), types=len(corpus.vocabulary))
found.update(seconds=round(time.process_time() - start, 1), prepared=peak())
config = Config(hidden=8, batch_size=4, unroll=5)
step = TrainingStep(initial_model(config, len(corpus.vocabulary), mx.cpu()), config, mx.cpu())
batches = training_batches(corpus.train, config.batch_size, config.unroll)
start = time.process_time()
losses = [step(*next(batches)) for _ in range(3)]
print(json.dumps({**found, "steps_seconds": round(time.process_time() - start, 1), "trained": peak()}))
"""


def write_text(path, megabytes, types):
    """Write a text of at least that size in which every one of these types is there, and some are far more frequent."""
    draws = np.random.RandomState(1)
    words, size = np.array([f"w{number:x}" for number in range(types)]), 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 10**6:
            chosen = (types * draws.uniform(size=120_000) ** 3).astype(int)
            if size == 0:
                chosen = np.concatenate([draws.permutation(types), chosen])
            text = "".join(" ".join(words[chosen[n : n + 12]]) + "\n" for n in range(0, len(chosen), 12))
            size += file.write(text)


def own_text(path, max_vocabulary):
    """What `OWN_TEXT` prints, from a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", OWN_TEXT, str(path), str(max_vocabulary)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout)


@pytest.mark.load(reason="takes minutes and a gigabyte; what a token takes is measured on 1 MB")
@pytest.mark.timeout(7200)
def test_a_hundred_megabytes_with_a_million_types_are_prepared_and_trained_in_bounded_memory(tmp_path, capsys):
    path = tmp_path / "text.txt"
    for megabytes in (10, 30, 100):
        write_text(path, megabytes, types=1_000_000)
        for max_vocabulary in (10_000, 1_000_002):
            found = own_text(path, max_vocabulary)
            with capsys.disabled():
                print(f"\n{megabytes} MB, at most {max_vocabulary:,} types: {found}")
            # The types are what counts: of each token only a few bytes are held.
            assert found["prepared"] - found["before"] < 350 + 4 * megabytes


@pytest.mark.parametrize("lines", ["many", "one"])
def test_a_text_is_encoded_in_a_few_bytes_a_token(tmp_path, lines):
    """What the words would take as Python strings is ten times as much."""
    from noisin.data import encoding
    from noisin.data.published import SPLITS, Text

    path = tmp_path / "text.txt"
    write_text(path, 1, types=300)
    if lines == "one":
        path.write_text(path.read_text().replace("\n", " "))
    text = Text(path, path.read_bytes())
    encoding._vocabulary({"a": 1})  # with gluonnlp loaded
    tracemalloc.start()
    try:
        _, splits = encoding.encode(dict.fromkeys(SPLITS, text) if lines == "one" else {"text": text}, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * sum(map(len, splits.values()))
