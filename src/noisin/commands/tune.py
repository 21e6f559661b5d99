"""`noisin tune`: search gamma, noise, dropout rates and learning rate by validation perplexity."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import List

from noisin.commands.options import (
    add_config,
    add_data_dir,
    add_device,
    check_active,
    given_options,
    report,
    training_corpus,
)
from noisin.commands.parser import names, positive
from noisin.config import Contradiction, flag
from noisin.data.batches import left_out_notice, training_batches
from noisin.methods import METHODS
from noisin.search import SPACE, Space, train_command
from noisin.system.device import check_dtype, find_device
from noisin.system.errors import UserError, escape_unprintable, short_repr
from noisin.system.threads import threads, useful_threads
from noisin.tables import markdown

# Instead of the first there is --methods; the others are those of the test split.
WITHOUT = ("method", "eval_samples", "eval_particles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.usage = "noisin tune [options]"
    parser.description = (
        "Train one model after the other, each with other values of the searched options, and print the command that "
        "trains the best one. An option whose default is 'searched' is searched where it has an effect with the "
        "method; if it is given, its value is fixed. The validation perplexity decides; the test split is never "
        "evaluated."
    )
    parser.set_defaults(again="the same command resumes the interrupted trials")
    parser.add_argument(
        "--methods",
        type=_methods,
        default=["noisin"],
        metavar="METHOD[,...]",
        help=f"methods to search, of {', '.join(METHODS)} (default: noisin)",
    )
    parser.add_argument(
        "--trials",
        type=positive,
        default=40,
        metavar="N",
        help="number of trials, including those of an earlier call (default: 40)",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="trials to train at the same time (default: 1, or one per core if each uses one thread)",
    )
    parser.add_argument(
        "--study", type=Path, metavar="DIR", help="folder of the study (default: runs/tune/CORPUS-DIGEST)"
    )
    add_data_dir(parser)
    add_device(parser)
    add_config(parser, WITHOUT, {searched.option for searched in SPACE})


def _methods(text: str) -> List[str]:
    """Return an argument's type: names of methods."""
    found = names(text)
    for name in found:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{short_repr(name)} is unknown: it must be of {', '.join(METHODS)}")
    return found


def run(arguments: argparse.Namespace) -> None:
    """Search, then print the trials and the command of the best one."""
    try:
        from noisin.tuning import ENOUGH, PICTURE, tune  # with Optuna, an extra
    except ImportError as error:
        raise UserError(f"noisin tune needs Optuna ({error}): pip install '.[tune]' in noisin's folder") from None
    given = given_options(arguments)
    try:
        space = Space(arguments.methods, given)
    except Contradiction as error:
        raise UserError(str(error.spelled(flag))) from None
    configs = list(space.bases.values())
    check_active(given, configs)
    check_dtype(configs[0].dtype, find_device(arguments.device))
    corpus = training_corpus(configs[0], arguments.data_dir)
    training_batches(corpus.train, configs[0].batch_size, configs[0].unroll)  # refuses too short a text
    folder = arguments.study or space.folder(corpus)
    useful = useful_threads(configs[0].hidden, threads())
    jobs = arguments.jobs or threads() // useful
    cores = min(useful, max(1, threads() // jobs))
    options = ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    of_device = [] if arguments.device == "auto" else ["--device", arguments.device]
    report(f"study {folder}")
    notice = left_out_notice(corpus.train, configs[0].batch_size, configs[0].unroll)
    if notice:
        report(notice)
    study = tune(space, corpus, folder, arguments.trials, jobs, cores, arguments.device, options, report)
    print(f"\n{markdown(study.table())}")
    best = study.best()
    if best is None:
        raise UserError("no trial has finished: search with a smaller --learning-rate or --clip, or with more --trials")
    picture = escape_unprintable(str(folder / PICTURE))
    print(f"\nWhat mattered: {picture if (folder / PICTURE).exists() else f'needs {ENOUGH} trials of a method'}")
    command = train_command(space.config(best.params), options + of_device)
    print(f"\nThe best one is trained, and tested, by\n\n    {command}")
