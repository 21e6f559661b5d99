"""The command `noisin`: data, train, tune, evaluate, sample, export, runs, compare."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import io
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple

import gluonnlp
import mxnet as mx
import numpy as np
from tqdm import tqdm

from noisin import __version__
from noisin.config import Config, config_from_dict, recorded_config
from noisin.data.batches import left_out_notice, training_batches
from noisin.data.corpus import Corpus, load_corpus, load_split
from noisin.data.encoding import ordered_vocabulary
from noisin.data.published import NAMES, full_name
from noisin.data.table1 import table1
from noisin.evaluation import make_evaluator
from noisin.model import evaluated_at_once, evaluation_seed, initial_model
from noisin.runs.directory import RunDirectory, run_name
from noisin.runs.record import finite_or_null
from noisin.sampling import sample_words
from noisin.system.device import check_dtype, find_device
from noisin.system.errors import UserError, escape_control, escape_unprintable
from noisin.system.files import read_json, write_file
from noisin.system.process import DIVERGED, end_with_parent
from noisin.system.threads import SMALL, idle_cores, threads, threads_were_chosen, useful_threads
from noisin.tables import markdown
from noisin.training import train

EXPORT = """\
Write the trained network, with the noise off, as an ONNX model. One graph serves sequences and, with T = 1, single
steps: tokens (T, B) and states (B, hidden) become log_probabilities (T, B, V) and next states, for any T and B. The
metadata have the vocabulary. docs/export.md shows how to use it."""
EPILOG = "A mistake of yours ends with one line on stderr and status 2; an interrupted run goes on when repeated."
TRAIN_EPILOG = (
    f"{EPILOG} A training that diverged ends with status {DIVERGED}; its record says why. A finished run goes on with "
    "more --epochs. A text that has moved is known by its contents."
)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return the exit status: as `run_command`."""
    end_with_parent()
    arguments = _parser().parse_args(argv)
    arguments.in_own_process = argv is None
    return run_command("noisin", lambda: arguments.command(arguments), arguments.again)


def run_command(program: str, work: Callable[[], Optional[int]], again: str) -> int:
    """Do the work of a command, and say in one line what a user can cause.

    Parameters
    ----------
    program : str
        Its name.
    work : callable
        Returns the exit status, or None for 0.
    again : str
        What an interruption leaves, for its line.

    Returns
    -------
    int
        The exit status: that of the work, 2 for a user's mistake, 130 for an interruption, 141 where the reader of the
        output has gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may have what the output's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = work() or 0
        if sys.stdout is not None:  # which the caller may have closed
            sys.stdout.flush()
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # what is left of a bar
        print(f"{clear}{program}: interrupted; {again}", file=sys.stderr)
        return 130
    except mx.MXNetError as error:
        if "Failed to allocate" not in str(error):
            raise  # a defect of ours
        print(f"{program}: error: the memory is full; lower hidden, batch_size, unroll or samples", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `noisin sample ... | head`
        _discard_output()
        return 128 + signal.SIGPIPE  # as a shell says it of other commands
    except OSError as error:
        if error.filename is not None:
            print(f"{program}: error: {escape_unprintable(str(error.filename))}: {error.strerror}", file=sys.stderr)
            return 2
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # a defect of ours
        _discard_output()
        print(f"{program}: error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 2
    return status


def _discard_output() -> None:
    """Let what is still to be written go nowhere, or Python would fail with it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class OneLineParser(argparse.ArgumentParser):
    """Argparse whose errors are one line, of the command that they are about."""

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        found, unknown = self.parse_known_args(*arguments, **options)
        if unknown:
            parser = getattr(found, "parser", self)
            known = [option for action in parser._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
            what = "not an option" if unknown[0].startswith("-") else "one argument too many"
            parser.error(f"{unknown[0]} is {what}" + (f"; did you mean {near[0]}?" if near else ""))
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {escape_unprintable(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="noisin", description="Recurrent language models regularised by noise.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"noisin {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser.set_defaults(again="nothing is left half-written")

    data = commands.add_parser("data", help="find, download, check and describe corpora", epilog=EPILOG)
    data.add_argument(
        "corpora", nargs="+", metavar="CORPUS", help="ptb, wikitext-2, synthetic, or a path of one's own text"
    )
    _add_data_dir(data)
    data.add_argument("--no-download", action="store_true", help="do not look on the network")
    data.set_defaults(command=_data)

    training = commands.add_parser(
        "train",
        help="train one model; goes on where it was interrupted",
        usage="noisin train [options]",
        epilog=TRAIN_EPILOG,
    )
    _add_config(training)
    training.add_argument("--config", metavar="FILE", help="JSON object of options; the command line goes before it")
    training.add_argument("--run-dir", metavar="DIR", help="where the run is kept (default: runs/NAME-OF-THE-RUN)")
    training.add_argument("--quiet", action="store_true", help="no progress bars")
    training.add_argument("--wait", action="store_true", help="wait while another process trains in the run directory")
    training.add_argument(
        "--events", action="store_true", help="write events for TensorBoard into the run directory too"
    )
    training.add_argument(
        "--threads",
        type=positive,
        help=f"threads to compute with (default: OMP_NUM_THREADS, or else one an idle core, but 1 below {SMALL} units)",
    )
    training.add_argument(
        "--no-test", action="store_true", help="leave the test split alone; the same command without it tests the run"
    )
    _add_data_dir(training)
    _add_device(training)
    training.set_defaults(command=_train, again="the same command goes on from the last finished epoch")

    tuning = commands.add_parser(
        "tune",
        help="search gamma, noise, dropout rates and learning rate by validation perplexity",
        usage="noisin tune [options]",
        description="Train one model after the other, each with other values of the options that are searched, and "
        "print the command that trains the best one. Searched are gamma, noise, noise mode, dropout rates and learning "
        "rate, as far as they have an effect with the method; an option given here is fixed instead. The test split is "
        "never evaluated.",
        epilog=EPILOG,
    )
    tuning.add_argument(
        "--methods", type=names, default=["noisin"], metavar="METHOD[,...]", help="methods to search (default: noisin)"
    )
    tuning.add_argument(
        "--trials", type=positive, default=40, help="trials of the study, earlier ones included (default: 40)"
    )
    tuning.add_argument(
        "--jobs", type=positive, help="trials side by side (default: 1, or one a core if a run uses one)"
    )
    tuning.add_argument(
        "--study", type=Path, metavar="DIR", help="where the study is kept (default: runs/tune/CORPUS-DIGEST)"
    )
    _add_data_dir(tuning)
    _add_device(tuning)
    _add_config(tuning, without="method")
    tuning.set_defaults(command=_tune, again="the same command goes on with the trials that were under way")

    evaluate = commands.add_parser("evaluate", help="perplexities of a trained model", epilog=EPILOG)
    _add_run(evaluate)
    evaluate.add_argument(
        "--corpus", help="another text (one file: all of it), or where the run's own text now lies (default: the run's)"
    )
    _add_data_dir(evaluate)
    evaluate.add_argument(
        "--split", choices=("valid", "test"), help="default: valid; look at test once a run (one file is taken whole)"
    )
    evaluate.add_argument("--samples", type=positive, help="trajectories of the noise (default: the run's)")
    evaluate.add_argument(
        "--seed", type=natural, default=0, help="random seed for the noise (default: 0, the record's)"
    )
    evaluate.add_argument(
        "--particles",
        type=positive,
        metavar="P",
        help="estimate log p(x), with the noise integrated out, by a particle filter of so many trajectories; takes as "
        "long as P samples",
    )
    evaluate.add_argument(
        "--repetitions", type=positive, default=3, metavar="N", help="independent particle filters (default: 3)"
    )
    _add_device(evaluate)
    evaluate.set_defaults(command=_evaluate)

    sample = commands.add_parser("sample", help="write text from a trained model", epilog=EPILOG)
    _add_run(sample)
    sample.add_argument("--words", type=positive, default=100, help="how many (default: 100)")
    sample.add_argument("--prompt", default="", help="words to begin with (default: the beginning of a sentence)")
    sample.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest word each time (default: 1)")
    sample.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest words (default: all)")
    sample.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest words that have probability P together",
    )
    sample.add_argument("--no-unk", action="store_true", help="draw no <unk>, the word for unknown words")
    sample.add_argument("--seed", type=natural, default=0, help="another seed, another text (default: 0)")
    _add_device(sample)
    sample.set_defaults(command=_sample)

    export = commands.add_parser(
        "export", help="write a trained model as an ONNX file", description=EXPORT, epilog=EPILOG
    )
    _add_run(export)
    export.add_argument("model", metavar="MODEL.onnx", type=Path, help="file to write; an existing one is replaced")
    export.set_defaults(command=_export)

    runs = commands.add_parser("runs", help="list runs with their status, best epoch and perplexities", epilog=EPILOG)
    runs.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where to look (default: runs)")
    runs.set_defaults(command=_runs)

    comparison = commands.add_parser("compare", help="compare runs in a table and draw their curves", epilog=EPILOG)
    comparison.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="directories made by noisin train")
    comparison.add_argument(
        "--figure",
        type=Path,
        default=Path("comparison.png"),
        metavar="FILE",
        help="where to draw the curves, a .png or .svg file; an existing one is replaced (default: comparison.png)",
    )
    comparison.set_defaults(command=_compare)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder with ptb/ and wikitext-2/ (then NOISIN_DATA, data/ and a download)"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, gpu, gpu:N, or auto: a usable GPU, else the CPU (default)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", help="directory made by noisin train")


def _add_config(parser: argparse.ArgumentParser, without: str = "") -> None:
    """An argument for each field of Config, explained by its metadata."""
    groups: Dict[str, Any] = {}
    for entry in (entry for entry in dataclasses.fields(Config) if entry.name != without):
        name = entry.metadata["group"]
        groups.setdefault(name, parser.add_argument_group(name) if name not in groups else groups[name])
        groups[name].add_argument(
            f"--{entry.name.replace('_', '-')}",
            type=_PARSERS.get(entry.metadata["kind"], str),
            choices=entry.metadata["choices"] or None,
            metavar=None if entry.metadata["choices"] else _METAVARS.get(entry.metadata["kind"], "TEXT"),
            # Not the default itself: what is not given comes from --config, or else from Config.
            default=argparse.SUPPRESS,
            help=f"{entry.metadata['help']} (default: {_show(entry.metadata['default'])})",
        )


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={number}" for key, number in value.items()) or "the family's"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def positive(text: str) -> int:
    """An argument's type: a whole number of at least 1."""
    number = natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0 is not a positive whole number")
    return number


def natural(text: str) -> int:
    """An argument's type: a whole number of at least 0."""
    if not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 999999999")
    return int(text)


def names(text: str) -> List[str]:
    """An argument's type: names with commas between them, each once."""
    found = list(dict.fromkeys(text.replace(",", " ").split()))
    if not found:
        raise argparse.ArgumentTypeError("nothing is named")
    return found


def _numbers(text: str) -> List[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not numbers, as 0.1 or 0.1,0.2") from None


def _named_numbers(text: str) -> Dict[str, float]:
    try:
        return {name: float(number) for name, number in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not names with numbers, as k=2 or a=2,b=3") from None


_PARSERS: Dict[type, Callable[[str], Any]] = {int: int, float: float, list: _numbers, dict: _named_numbers}
_METAVARS = {int: "N", float: "X", list: "X[,X...]", dict: "NAME=X[,...]"}


def _data(arguments: argparse.Namespace) -> None:
    corpora = [load_corpus(name, arguments.data_dir, download=not arguments.no_download) for name in arguments.corpora]
    print(table1(corpora))


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    device = find_device(arguments.device)
    corpus = config_corpus(config, arguments.data_dir)
    directory = arguments.run_dir or Path("runs") / run_name(config, corpus)
    if arguments.in_own_process:
        _restart_with_threads(arguments.threads or _chosen_threads(config, RunDirectory(directory)))
    notice = left_out_notice(corpus.train, config.batch_size, config.unroll)
    if notice:
        _report(notice)
    shown = {"progress": not arguments.quiet, "events": arguments.events}
    record = train(config, directory, corpus, device, _report, wait=arguments.wait, test=not arguments.no_test, **shown)
    return DIVERGED if record["status"] == "diverged" else 0


def _chosen_threads(config: Config, directory: RunDirectory) -> int:
    """The threads of a run where the user does not say: those that it was begun with, or as many as are idle."""
    if not threads_were_chosen():
        return threads()
    try:
        progress = directory.load()
    except UserError:  # which is said when the run goes on
        progress = None
    if progress and progress.origins:
        return progress.origins[-1]["hardware"]["threads"]
    useful = useful_threads(config.hidden, threads())
    return min(useful, idle_cores()) if useful > 1 else useful


def _restart_with_threads(wanted: int) -> None:
    """Start this command anew with the threads that it is to have: MXNet asks for them once, while it is imported."""
    if wanted != threads():
        os.environ["OMP_NUM_THREADS"] = str(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "noisin", *sys.argv[1:]])


def _config(arguments: argparse.Namespace) -> Config:
    """The configuration of a training: the command line's options before those of `--config`."""
    given = _given(arguments)
    from_file, source = {}, "the command line"
    if arguments.config:
        from_file, source = read_json(Path(arguments.config)), f"{source} with {arguments.config}"
        if isinstance(from_file.get("config"), dict):  # the config.json of a run
            from_file = recorded_config(from_file["config"], arguments.config).to_dict()
    config = config_from_dict({**from_file, **given}, source)
    _check_active(given, [config])
    return config


def _given(arguments: argparse.Namespace) -> Dict[str, Any]:
    """The options of a configuration that stand on the command line."""
    return {e.name: getattr(arguments, e.name) for e in dataclasses.fields(Config) if hasattr(arguments, e.name)}


def _check_active(given: Iterable[str], configs: Sequence[Config]) -> None:
    """Refuse an option that has an effect in none of these: better said now than found out after a long run."""
    for name in given:
        if not any(config.acts(name) for config in configs):
            by = configs[0].inactive_options[name]
            value = getattr(configs[0], by)
            raise UserError(f"--{name.replace('_', '-')} does not act with {by} {value}: leave it out")


def _tune(arguments: argparse.Namespace) -> None:
    try:
        from noisin.tuning import (  # with Optuna, which no other command waits for
            ENOUGH,
            PICTURE,
            Space,
            train_command,
            tune,
        )
    except ImportError as error:
        raise UserError(f"noisin tune needs Optuna ({error}): pip install '.[tune]' in noisin's folder") from None
    space = Space(arguments.methods, _given(arguments))
    configs = list(space.bases.values())
    _check_active(_given(arguments), configs)
    check_dtype(configs[0].dtype, find_device(arguments.device))
    corpus = config_corpus(configs[0], arguments.data_dir)
    training_batches(corpus.train, configs[0].batch_size, configs[0].unroll)  # refuses too short a text
    folder = arguments.study or space.folder(corpus)
    useful = useful_threads(configs[0].hidden, threads())
    jobs = arguments.jobs or threads() // useful
    cores = min(useful, max(1, threads() // jobs))
    options = ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    _report(f"study {folder}")
    study = tune(space, corpus, folder, arguments.trials, jobs, cores, arguments.device, options, _report)
    print(f"\n{markdown(study.table())}")
    best = study.best()
    if best is None:
        raise UserError("no trial has finished: search with a smaller --learning-rate or --clip, or with more --trials")
    picture = escape_unprintable(str(folder / PICTURE))
    print(f"\nWhat mattered: {picture if (folder / PICTURE).exists() else f'needs {ENOUGH} trials of a method'}")
    print(f"\nThe best one is trained, and tested, by\n\n    {train_command(space.config(best.params))}")


def _report(line: str) -> None:
    """Print a line of the run's story on stdout, above the progress bar on stderr."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(escape_unprintable(line), flush=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    directory = RunDirectory(arguments.run)
    config = directory.read_config()
    if arguments.samples:
        config = dataclasses.replace(config, eval_samples=arguments.samples)
    vocabulary = ordered_vocabulary(directory.read_vocabulary())
    name, part, tokens = _evaluated_text(directory, config, vocabulary, arguments)
    at_once = max(evaluated_at_once(config), config.eval_batch_size * (arguments.particles or 1))
    model, device = _best_model(directory, config, len(vocabulary), at_once, arguments.device)
    evaluator = make_evaluator(model, config, vocabulary, device, progress=True)
    seed = evaluation_seed(config.seed, arguments.seed)
    result = evaluator.all(tokens, seed)
    if arguments.particles:
        result.update(evaluator.marginal(tokens, arguments.particles, arguments.repetitions, seed))
    found = {"corpus": name, "split": part, "tokens": len(tokens)}
    print(json.dumps({**found, **finite_or_null(result)}))


def _evaluated_text(
    directory: RunDirectory, config: Config, vocabulary: gluonnlp.Vocab, arguments: argparse.Namespace
) -> Tuple[str, str, np.ndarray]:
    """The corpus that `evaluate` is to look at, which part of it, and its tokens as ids of the run's vocabulary."""
    split = arguments.split or "valid"
    if arguments.corpus is None:
        try:
            corpus = config_corpus(config, arguments.data_dir)
        except UserError as error:
            if config.corpus in NAMES:
                raise
            raise UserError(f"{error}; if the text of this run has moved, say where it is with --corpus") from None
        if corpus.digest != directory.corpus_sha256:
            raise UserError(f"{corpus.name} has changed since {arguments.run} was trained: name a text with --corpus")
        return corpus.name, split, getattr(corpus, split)
    try:
        corpus = config_corpus(config, arguments.data_dir, arguments.corpus)
        if corpus.digest == directory.corpus_sha256:  # the run's own, which has moved
            return corpus.name, split, getattr(corpus, split)
    except UserError:
        pass  # too short to be trained on, or worse, which is said now
    part, tokens, unknown = load_split(arguments.corpus, split, vocabulary, arguments.data_dir)
    if part == "all" and arguments.split:
        raise UserError("--split has no effect on another text in one file, which is evaluated whole; remove it")
    words = int((tokens != vocabulary["<eos>"]).sum())
    share = f"{unknown:,} of {words:,} words ({unknown / max(words, 1):.1%})"
    print(f"noisin: {share} are not in the run's vocabulary and count as <unk>", file=sys.stderr)
    return os.path.basename(os.path.abspath(arguments.corpus)), part, tokens


def _sample(arguments: argparse.Namespace) -> None:
    directory = RunDirectory(arguments.run)
    config = directory.read_config()
    vocabulary = ordered_vocabulary(directory.read_vocabulary())
    model, device = _best_model(directory, config, len(vocabulary), 1, arguments.device)
    words = arguments.prompt.split()
    unknown = sorted({word for word in words if word not in vocabulary})
    if unknown:
        print(f"noisin: not in the vocabulary, read as <unk>: {escape_unprintable(' '.join(unknown))}", file=sys.stderr)
    prompt = vocabulary[["<eos>"] + words]
    try:
        excluded = [vocabulary["<unk>"]] if arguments.no_unk else []
        limits = {"excluded": excluded, "top_k": arguments.top_k, "top_p": arguments.top_p}
        ids = sample_words(model, prompt, arguments.seed, arguments.temperature, device, **limits)
        drawn = (escape_control(vocabulary.idx_to_token[i]) for i in itertools.islice(ids, arguments.words))
        text, separator = itertools.chain(map(escape_control, words), drawn), ""
        for word in text:
            end = word == "<eos>"
            print("\n" if end else separator + word, end="", flush=True)
            separator = "" if end else " "
        print()
    except ValueError as error:
        raise UserError(str(error)) from None


def _export(arguments: argparse.Namespace) -> None:
    try:
        from noisin.export import to_onnx  # with onnx, an extra
    except ImportError as error:
        raise UserError(f"export needs onnx ({error}): pip install '.[onnx]' in noisin's folder") from None
    path = arguments.model
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file; name a file, e.g. model.onnx")
    if path.suffix != ".onnx":  # nor can it then be a file of the run
        raise UserError(f"cannot write {path}: name a file that ends in .onnx, e.g. model.onnx")
    directory = RunDirectory(arguments.run)
    config, vocabulary = directory.read_config(), directory.read_vocabulary()
    model, _ = _best_model(directory, config, len(vocabulary), 1, "cpu")
    content = to_onnx(model, config, vocabulary)
    write_file(path, lambda aside: aside.write_bytes(content))
    print(f"Written: {escape_unprintable(str(path))}")


def _runs(arguments: argparse.Namespace) -> None:
    from noisin.runs.listing import runs_table  # with pandas, which no other command waits for

    print(runs_table(arguments.folder).to_string(index=False))


def _compare(arguments: argparse.Namespace) -> None:
    from noisin.runs.comparison import compare  # with pandas and matplotlib, which take a while

    print(compare(arguments.runs, arguments.figure))


def config_corpus(config: Config, data_dir: Optional[str] = None, moved_to: Optional[str] = None) -> Corpus:
    """The corpus that a configuration names, or the same text at `moved_to`."""
    name = full_name(moved_to or config.corpus)
    return load_corpus(name, data_dir, max_vocabulary=None if name in NAMES else config.max_vocabulary)


def _best_model(
    directory: RunDirectory, config: Config, vocabulary_size: int, predictions: int, device_name: str
) -> Any:
    """The model of a run with the weights of its best epoch, and the device of this name, where it is."""
    device = find_device(device_name)
    model = initial_model(config, vocabulary_size, device, predictions)
    directory.load_best_weights(model)
    model.hybridize()
    return model, device


if __name__ == "__main__":
    sys.exit(main())
