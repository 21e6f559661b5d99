"""Compare the methods as the paper does, and end with a table and a figure: `python -m experiments EXPERIMENT`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from experiments.catalogue import EXPERIMENTS, Experiment
from experiments.grid.engines import Ended, Relay, dask_engine, local_engine
from experiments.grid.runner import run_grid
from experiments.records import RESULTS, draw, floor_of
from experiments.report.build import FOLDER, write_own_report, write_report
from experiments.report.readme import update_pages
from experiments.report.runs import load_runs, run_of, runs_of
from experiments.report.tables import frame, lines
from noisin.commands.parser import OneLineParser, names, natural, positive, run_command
from noisin.config import Config
from noisin.data.corpus import load_corpus
from noisin.figures import save
from noisin.system.device import check_dtype, find_device
from noisin.system.errors import UserError, escape_unprintable, short_repr
from noisin.system.process import Job
from noisin.system.threads import threads, useful_threads
from noisin.tables import markdown

RUNS = Path("runs")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return the exit status: 0, 1 if a run failed, 2 for a user's mistake, 130."""
    return run_command("experiments", lambda: _parser().parse_args(argv), _do)


def _do(arguments: argparse.Namespace) -> Optional[int]:
    if arguments.command == "readme":
        update_pages()
    elif arguments.command == "report":
        if arguments.runs is None:
            out = arguments.out or FOLDER
            write_report(out)
        else:
            out = arguments.out or FOLDER / "runs"
            write_own_report(arguments.runs, out)
        print(f"Written: {escape_unprintable(str(out / 'index.html'))}, and its tables and figures beside it")
    else:
        return _compare(EXPERIMENTS[arguments.command], arguments)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m experiments", description=__doc__)
    parser.set_defaults(again="the same command goes on from the last finished epochs")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, experiment in EXPERIMENTS.items():
        _add_options(commands.add_parser(name, help=experiment.title, description=experiment.title), experiment)
    says = "rewrite the results in README.md and docs/ and their figures from the committed records"
    commands.add_parser("readme", help=says, description=says)
    says = "write tables, figures and a page from the committed records"
    report = commands.add_parser("report", help=says, description=says)
    report.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="show your own finished runs below this folder instead, with the paper's claims only where they apply",
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="its folder (default: report; report/runs with --runs)")
    return parser


def _add_options(parser: argparse.ArgumentParser, experiment: Experiment) -> None:
    parser.add_argument("--methods", type=names, help=f"some of {','.join(experiment.methods)} (default: all)")
    parser.add_argument("--seeds", type=_numbers, default=[1], help="e.g. 1,2,3 (default: 1)")
    parser.add_argument(
        "--only",
        type=_options,
        default={},
        metavar="NAME=VALUE,...",
        help="run only runs with these options, e.g. layers=2,activation=tanh,gamma=0.4 (default: all)",
    )
    parser.add_argument("--epochs", type=positive, help="maximum number of epochs; records then stay in runs/")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="number type of the decoder's product; bfloat16 needs a processor with AVX-512 (default: float32)",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        help="number of runs side by side on this machine (default: 1, or one per core if a run uses one thread)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="give the runs to Dask: tcp://host:port of a scheduler, whose workers share this folder; or local, "
        "for a scheduler and --jobs workers in this process (default: no Dask). Whoever reaches a port of a "
        "scheduler or worker can run code as you: keep them on loopback or a closed network",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        help="threads per run (default: the cores shared out among --jobs, 1 for a small network or on a cluster)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, gpu, gpu:N, or auto: a usable GPU, else the CPU (default)"
    )


def _options(text: str) -> Dict[str, str]:
    found: Dict[str, str] = {}
    for pair in names(text):
        if not re.fullmatch("[a-z_]+=.+", pair):
            raise argparse.ArgumentTypeError(f"{short_repr(pair)} is not NAME=VALUE")
        name, value = pair.split("=", 1)
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is given twice")
        found[name] = value
    return found


def _numbers(text: str) -> List[int]:
    return list(dict.fromkeys(map(natural, names(text))))  # 1 and 01 are one


def _compare(experiment: Experiment, arguments: argparse.Namespace) -> int:
    narrowing: Dict[str, Any] = {name: getattr(arguments, name) for name in ("epochs", "dtype")}
    narrowing = {name: value for name, value in narrowing.items() if value is not None}
    configs = experiment.configs(arguments.methods, arguments.seeds, **narrowing)
    for name, value in arguments.only.items():
        configs = _having(configs, name, value)
    if arguments.scheduler == "":
        raise UserError("--scheduler is empty: give local, or tcp://host:port")
    remote = arguments.scheduler not in (None, "local")
    if remote and arguments.jobs:
        raise UserError("--jobs has no effect on a cluster, where each worker thread takes one run; remove it")
    device = None if remote else find_device(arguments.device)  # a wrong one is said once, before any run
    kept = experiment.name != "demo" and "epochs" not in narrowing
    results = RESULTS / experiment.name if kept else RUNS / experiment.name / "records"
    elsewhere = sorted(set(RESULTS.glob("*")) - {results}) if kept else []
    useful = useful_threads(max(config.hidden for config in configs), threads())
    jobs = arguments.jobs or (1 if remote else threads() // useful)
    run_all = dask_engine(arguments.scheduler, jobs) if arguments.scheduler else local_engine(jobs)

    def engine(work: Mapping[str, Job], relay: Relay) -> Ended:
        # What is missing is said once, too, if there is anything to run.
        load_corpus(experiment.setting["corpus"])
        if device:
            check_dtype(configs[0].dtype, device)  # all have the same
        return run_all(work, relay)

    # Two runs of one thread make more words a second than two of two.
    cores = arguments.threads or (1 if remote else min(useful, max(1, threads() // jobs)))
    records, failed = run_grid(configs, RUNS / experiment.name, results, engine, cores, arguments.device, elsewhere)
    if records:
        _show(experiment, records, narrowing, kept)
    if failed:
        said = f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}; the same command tries them again"
        print(f"experiments: error: {said}", file=sys.stderr)
    return 1 if failed else 0


def _having(configs: Sequence[Config], name: str, value: str) -> List[Config]:
    """Those in which an option acts and has this value as it is written; what all layers share is written once."""

    def written(config: Config) -> str:
        if name not in config.to_dict():
            raise UserError(f"a run has no option {name}: --only takes those of noisin train, as layers=2")
        found = getattr(config, name)
        return ",".join(map(str, found)) if isinstance(found, list) else str(found)

    acting = [config for config in configs if name not in config.inactive_options]
    having = [config for config in acting if written(config) == value]
    if not having:
        there = f"there is {name}={', '.join(dict.fromkeys(map(written, acting)))}" if acting else "it acts in none"
        raise UserError(f"no run has {name}={value}: {there}")
    return having


def _show(
    experiment: Experiment, records: Sequence[Mapping[str, Any]], narrowing: Mapping[str, Any], kept: bool
) -> None:
    """Print the table of these records, and draw their curves; what is chosen is so among all that are kept."""
    own = [run_of(record) for record in records]
    among = load_runs(RESULTS) if kept else own
    runs = runs_of(experiment, among) if kept else own
    configs = [run.config for run in own]
    shown = [line for line in lines(experiment, runs, among, **narrowing) if line.run and line.run.config in configs]
    print(f"\n{experiment.title}\n\n{markdown(frame(experiment, shown))}")
    floor = floor_of(records)
    if floor is not None:
        print(f"\nThe source of the text has perplexity {floor:.2f}. On new text no model beats it but by chance.")
    # Not over the committed figure: that one shows every record, these may be a few (`make results` draws it).
    picture = RUNS / experiment.name / "curves.png"
    save(draw(experiment, records), picture)
    print(f"\nFigure: {picture}")


if __name__ == "__main__":
    sys.exit(main())
