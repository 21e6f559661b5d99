"""`noisin train`: train one model, or resume its training."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Dict

from noisin.commands.options import (
    add_config,
    add_data_dir,
    add_device,
    check_active,
    given_options,
    report,
    training_corpus,
)
from noisin.commands.parser import EPILOG, positive
from noisin.config import Config, Contradiction, check_options, flag, recorded_config
from noisin.runs.directory import RunDirectory, run_name
from noisin.system.device import find_device
from noisin.system.errors import UserError
from noisin.system.files import read_json
from noisin.system.process import DIVERGED
from noisin.system.threads import SMALL, idle_cores, most_threads, threads, threads_were_chosen, useful_threads
from noisin.training import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.usage = "noisin train [options]"
    parser.description = (
        "Train one model and evaluate its best epoch on the test split. An interrupted run resumes after its last "
        "finished epoch, and a finished run resumes if --epochs is larger. A run is identified by its options and the "
        "contents of its text, which may move."
    )
    parser.epilog = f"{EPILOG} A training that diverged ends with status {DIVERGED}, and its record says why."
    parser.set_defaults(again="the same command resumes after the last finished epoch")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="JSON object of the options below, e.g. config.json of a run; options on the command line override it",
    )
    parser.add_argument("--run-dir", metavar="DIR", type=_named, help="run directory (default: runs/NAME-OF-THE-RUN)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    parser.add_argument("--wait", action="store_true", help="wait while another process trains in the run directory")
    parser.add_argument("--events", action="store_true", help="also write events for TensorBoard")
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads to compute with (default: OMP_NUM_THREADS; without it, one per idle core, but 1 below "
        f"{SMALL} hidden units)",
    )
    parser.add_argument(
        "--no-test",
        action="store_true",
        help="do not evaluate the test split; the same command without this option does it later",
    )
    add_data_dir(parser)
    add_device(parser)
    add_config(parser)


def _named(text: str) -> Path:
    """Return an argument's type: a path; that of a variable which is not set is refused."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def run(arguments: argparse.Namespace) -> int:
    """Train; the exit status is 0, or `DIVERGED`."""
    if arguments.threads and arguments.threads > most_threads():
        raise UserError(f"--threads {arguments.threads}: this machine takes at most {most_threads()}")
    config = _config(arguments)
    device = find_device(arguments.device)
    corpus = training_corpus(config, arguments.data_dir)
    directory = RunDirectory(arguments.run_dir or Path("runs") / run_name(config, corpus))
    if arguments.in_own_process:
        _restart_with_threads(arguments.threads or _chosen_threads(config, directory))
    shown = {"progress": not arguments.quiet, "events": arguments.events}
    test = not arguments.no_test
    record = train(config, directory.path, corpus, device, report, wait=arguments.wait, test=test, **shown)
    if record["status"] != "diverged":
        return 0
    print(f"noisin: error: {_why_diverged(record, directory)}", file=sys.stderr)
    return DIVERGED


def _why_diverged(record: Dict[str, Any], directory: RunDirectory) -> UserError:
    best, reason = record["best_epoch"], record.get("reason")  # which older records lack
    left = f"{directory.best_path(best)} keeps the best weights" if best else "no epoch was finished"
    return UserError(
        f"the training diverged{f' in {reason}' if reason else ''}; {left}; try a smaller --learning-rate, a smaller "
        "--clip, or another --recurrent-init"
    )


def _chosen_threads(config: Config, directory: RunDirectory) -> int:
    """Return the threads of a run where the user names none: those of its first part, or as many as cores are idle."""
    if not threads_were_chosen():
        return threads()
    try:
        progress = directory.load()
    except UserError:  # which is said when the run resumes
        progress = None
    if progress and progress.origins:
        return min(progress.origins[-1]["hardware"]["threads"], most_threads())
    useful = useful_threads(config.hidden, threads())
    return min(useful, idle_cores()) if useful > 1 else useful


def _restart_with_threads(wanted: int) -> None:
    """Start this command anew with the threads that it is to have: MXNet asks for them once, while it is imported."""
    if wanted != threads():
        os.environ["OMP_NUM_THREADS"] = str(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "noisin", *sys.argv[1:]])


def _config(arguments: argparse.Namespace) -> Config:
    """Return the configuration of a training: the options of the command line override those of `--config`."""
    given, path = given_options(arguments), arguments.config
    from_file = {} if path is None else _options_of(path)
    try:
        config = Config(**{**from_file, **given})
    except Contradiction as error:
        where = f"in the command line with {path}, " if path else ""
        spelled = error.spelled(lambda name: name if name in from_file.keys() - given.keys() else flag(name))
        raise UserError(f"{where}{spelled}") from None
    check_active(given, [config])
    return config


def _options_of(path: Path) -> Dict[str, Any]:
    """Read the options of a file, each of them valid; also from the `config.json` of a run."""
    if path.is_dir():
        raise UserError(f"--config {path} is a directory: name a file of options, e.g. {path / 'config.json'}")
    content = read_json(path)
    if isinstance(content.get("config"), dict):
        return recorded_config(content["config"], str(path)).to_dict()
    check_options(content, str(path))
    return content
