"""`noisin robustness`: are the probabilities of trained models right, and do they hold under noise."""

from __future__ import annotations

import argparse
from typing import Any, Dict

import pandas as pd

from noisin import figures
from noisin.commands.options import (
    PICTURES,
    add_data_dir,
    add_device,
    add_figure,
    best_model,
    check_output,
    config_corpus,
)
from noisin.data.encoding import ordered_vocabulary
from noisin.evaluation import Evaluator
from noisin.methods import METHODS
from noisin.model import evaluated_at_once, evaluation_seed
from noisin.robustness import calibration, noisy_copy, predictions
from noisin.runs.directory import RunDirectory
from noisin.system.errors import UserError, escape_unprintable

SPREADS = (0.0, 0.1, 0.2, 0.3, 0.5)  # of the noise added at test time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.description = (
        "Print how well calibrated trained models are, and how their perplexity grows with noise added at test "
        "time: Gaussian, on every hidden state, the same for every method. ECE, the expected calibration error, is the "
        "mean distance between predicted probability and observed frequency of the likeliest next word."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run directories, made by noisin train")
    add_figure(parser, "robustness.png")
    parser.add_argument("--corpus", help="new place of the text, if it has moved; the same for all these runs")
    parser.add_argument(
        "--split", choices=("valid", "test"), default="valid", help="split to evaluate (default: valid)"
    )
    add_data_dir(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the table and draw the figure."""
    check_output(arguments.figure, PICTURES)
    found = [_measure(path, arguments) for path in dict.fromkeys(arguments.runs)]
    figures.save(figures.robustness(found), arguments.figure)
    rows = []
    for entry in found:
        errors = {f"ECE, {name}": f"{100 * entry['calibration'][name].error:.1f} %" for name in entry["calibration"]}
        noise = {f"noise {spread:g}": f"{ppl:.1f}" for spread, ppl in entry["perplexities"].items()}
        corpus = {"corpus": entry["corpus"]} if len({other["text"] for other in found}) > 1 else {}
        rows.append({"run": entry["run"], **corpus, "method": entry["method"].title, **noise, **errors})
    print(pd.DataFrame(rows, dtype=object).fillna("-").to_string(index=False))
    print(f"Written: {escape_unprintable(str(arguments.figure))}")


def _measure(path: str, arguments: argparse.Namespace) -> Dict[str, Any]:
    directory = RunDirectory(path)
    config = directory.read_config()
    corpus = config_corpus(config, arguments.data_dir, arguments.corpus)
    if not directory.is_of(corpus):
        if arguments.corpus:
            raise UserError(f"{arguments.corpus} is not the text that {path} was trained on")
        raise UserError(f"{path} was not trained on {corpus.name} as it is now: name its text with --corpus")
    tokens, vocabulary = getattr(corpus, arguments.split), ordered_vocabulary(directory.read_vocabulary())
    eos, seed = vocabulary["<eos>"], evaluation_seed(config.seed)
    model, device = best_model(directory, config, len(vocabulary), evaluated_at_once(config), arguments.device)

    def calibrated(samples: int) -> Any:
        return calibration(*predictions(model, tokens, config, eos, device, samples))

    def perplexity(spread: float) -> float:
        noisy = noisy_copy(model, config, spread, device)
        evaluator = Evaluator(noisy, eos, config.eval_batch_size, config.unroll, 1, device, progress=True)
        return evaluator.bound(tokens, seed)

    calibrations = {"noise off": calibrated(0)}
    if model.stochastic:
        calibrations["averaged"] = calibrated(config.eval_samples)
    return {
        "run": escape_unprintable(path),
        "corpus": f"{escape_unprintable(config.corpus)}, {len(vocabulary):,} types",
        "text": (corpus.digest, len(vocabulary)),
        "method": METHODS[config.method],
        "calibration": calibrations,
        "perplexities": {spread: perplexity(spread) for spread in SPREADS},
    }
