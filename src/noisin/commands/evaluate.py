"""`noisin evaluate`: the perplexities of a trained model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Tuple

import gluonnlp
import numpy as np

from noisin.commands.options import PERPLEXITIES, add_data_dir, add_device, add_run, best_model, config_corpus, type_of
from noisin.commands.parser import natural, positive
from noisin.config import Config
from noisin.data.corpus import load_split, short_name
from noisin.data.encoding import ordered_vocabulary
from noisin.evaluation import make_evaluator
from noisin.model import evaluated_at_once, evaluation_seed
from noisin.runs.directory import RunDirectory
from noisin.runs.record import finite_or_null
from noisin.system.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.description = f"Print the perplexities of a trained model as one line of JSON.\n\n{PERPLEXITIES}"
    add_run(parser)
    parser.add_argument(
        "--corpus",
        help="text to evaluate instead of the run's, a single file as a whole; or the new place of the run's text, if "
        "it has moved",
    )
    add_data_dir(parser)
    parser.add_argument(
        "--split", choices=("valid", "test"), help="split to evaluate (default: valid; use test only once, at the end)"
    )
    parser.add_argument(
        "--samples",
        type=type_of(Config.__dataclass_fields__["eval_samples"]),
        metavar="N",
        help="noise trajectories of bound and averaged (default: the run's)",
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="random seed for the noise (default: 0, the record's)"
    )
    parser.add_argument(
        "--particles",
        type=positive,
        metavar="P",
        help="also estimate marginal, by a particle filter of P trajectories; takes as long as P times --repetitions "
        "samples",
    )
    parser.add_argument(
        "--repetitions",
        type=positive,
        metavar="N",
        help="independent particle filters to average over (default: 3)",
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the perplexities."""
    if arguments.repetitions and not arguments.particles:
        raise UserError("--repetitions has no effect without --particles; remove it, or give both")
    directory = RunDirectory(arguments.run)
    config = directory.read_config()
    if arguments.samples:
        config = dataclasses.replace(config, eval_samples=arguments.samples)
    vocabulary = ordered_vocabulary(directory.read_vocabulary())
    name, part, tokens = _evaluated_text(directory, config, vocabulary, arguments)
    particles = arguments.particles if arguments.particles and config.acts("eval_particles") else 1
    at_once = max(evaluated_at_once(config), config.eval_batch_size * particles)
    model, device = best_model(directory, config, len(vocabulary), at_once, arguments.device)
    evaluator = make_evaluator(model, config, vocabulary, device, progress=True)
    seed = evaluation_seed(config.seed, arguments.seed)
    result = evaluator.all(tokens, seed)
    if arguments.particles:
        result.update(evaluator.marginal(tokens, arguments.particles, arguments.repetitions or 3, seed))
    found = {"corpus": name, "split": part, "tokens": len(tokens)}
    print(json.dumps({**found, **finite_or_null(result)}))


def _evaluated_text(
    directory: RunDirectory, config: Config, vocabulary: gluonnlp.Vocab, arguments: argparse.Namespace
) -> Tuple[str, str, np.ndarray]:
    """Return the name of the evaluated corpus, which part of it, and its tokens as ids of the run's vocabulary."""
    split = arguments.split or "valid"
    if arguments.corpus is None:
        corpus = config_corpus(config, arguments.data_dir)
        if not directory.is_of(corpus):
            raise UserError(f"{arguments.run} was not trained on {corpus.name} as it is now: name a text with --corpus")
        return corpus.name, split, getattr(corpus, split)
    try:
        corpus = config_corpus(config, arguments.data_dir, arguments.corpus)
        if directory.is_of(corpus):  # the run's own, which has moved
            return corpus.name, split, getattr(corpus, split)
    except UserError:
        pass  # too short to be trained on, or worse, which is said now
    part, tokens, unknown = load_split(arguments.corpus, split, vocabulary, arguments.data_dir)
    if part == "all" and arguments.split:
        raise UserError("--split has no effect on another text in one file, which is evaluated whole; remove it")
    words = int((tokens != vocabulary["<eos>"]).sum())
    if unknown:
        share = f"{unknown:,} of {words:,} words ({unknown / words:.1%})"
        print(f"noisin: {share} are not in the run's vocabulary and count as <unk>", file=sys.stderr)
    return short_name(arguments.corpus), part, tokens
