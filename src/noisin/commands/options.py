"""What several commands share: options, configurations from them, the corpus and the model of a run."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterable, List, Optional, Sequence, Tuple

import mxnet as mx
from tqdm import tqdm

from noisin.config import Config, flag, problem, shown
from noisin.data.corpus import Corpus, load_corpus
from noisin.data.published import NAMES, PUBLISHED, full_name
from noisin.methods import METHODS
from noisin.model import LanguageModel, initial_model
from noisin.pretrained import PRETRAINED
from noisin.runs.directory import RunDirectory
from noisin.system.device import find_device
from noisin.system.errors import UserError, escape_unprintable, short_repr

PICTURES = (".png", ".svg")
LONG = 50  # characters of names that help shows behind the option
# For the help of the commands that print them.
PERPLEXITIES = """\
Perplexities, from the probability p of each word; dropout is noise, too:
  clean           with the noise off
  bound           log p averaged over the noise, as the paper trains
  averaged        p averaged over the noise
  averaged_limit  estimate of averaged for infinitely many noise trajectories
  marginal        estimate from p of the whole text, averaged over the noise"""


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of the published corpora."""
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help=f"folder that has {' and '.join(f'{name}/' for name in PUBLISHED)} (default: NOISIN_DATA, then data/, "
        "then a download into data/)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option for the device."""
    parser.add_argument(
        "--device", default="auto", help="cpu, gpu, gpu:N, or auto: a GPU if one is usable, else the CPU (default)"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument for a run directory, and the option for one that comes with the package."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        # Without a default, which would replace the value of --pretrained.
        "run",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="RUN_DIR",
        help="run directory, made by noisin train",
    )
    group.add_argument(
        "--pretrained",
        dest="run",
        type=_pretrained,
        metavar="NAME",
        help=f"instead, a model that comes with noisin: {', '.join(PRETRAINED)}",
    )


def _pretrained(name: str) -> Path:
    if name not in PRETRAINED:
        raise argparse.ArgumentTypeError(f"there is no {short_repr(name)}: choose from {', '.join(PRETRAINED)}")
    return PRETRAINED[name]


def add_figure(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option for the picture that a command draws."""
    parser.add_argument(
        "--figure",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help=f"picture to write, .png or .svg; an existing one is replaced (default: {default})",
    )


def add_config(parser: argparse.ArgumentParser, without: Collection[str] = (), searched: Collection[str] = ()) -> None:
    """Add an option for each field of `Config`, explained by its metadata.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    without : collection of str, default none
        Fields that get no option.
    searched : collection of str, default none
        Fields whose default is that they are searched.
    """
    groups: Dict[str, Any] = {}
    for entry in dataclasses.fields(Config):
        if entry.name in without:
            continue
        group, kind, choices = (entry.metadata[name] for name in ("group", "kind", "choices"))
        if group not in groups:
            methods = [name for name, method in METHODS.items() if group in method.groups]
            groups[group] = parser.add_argument_group(group, f"with method {', '.join(methods)}" if methods else None)
        names = ", ".join(choices)
        many = len(names) > LONG
        default = "searched" if entry.name in searched else shown(entry.metadata["default"]) or "the family's"
        groups[group].add_argument(
            flag(entry.name),
            type=type_of(entry),
            choices=choices or None,
            metavar="NAME" if many else None if choices else _METAVARS.get(kind, "TEXT"),
            # Not the default itself: what is not given comes from --config, or else from Config.
            default=argparse.SUPPRESS,
            help=f"{entry.metadata['help']} ({f'one of {names}; ' if many else ''}default: {default})",
        )


def type_of(entry: dataclasses.Field) -> Callable[[str], Any]:
    """Return an argument's type: the value of a field of `Config`, checked."""
    parse, expected = _PARSERS.get(entry.metadata["kind"], (str, "text"))

    def parsed(text: str) -> Any:
        try:
            value = parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{short_repr(text)} is not {expected}") from None
        # argparse itself checks choices.
        wrong = "" if entry.metadata["choices"] else problem(entry, value)
        if wrong:
            raise argparse.ArgumentTypeError(f"{short_repr(text)} is invalid: {wrong}")
        return value

    return parsed


def _numbers(text: str) -> List[float]:
    return [float(part) for part in text.split(",")]


def _named_numbers(text: str) -> Dict[str, float]:
    found = [part.split("=") for part in text.split(",")]
    if len({name for name, _ in found}) < len(found):
        raise ValueError("a name comes twice")
    return {name: float(number) for name, number in found}


_PARSERS: Dict[type, Tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    list: (_numbers, "numbers, e.g. 0.1 or 0.1,0.2"),
    dict: (_named_numbers, "names with numbers, e.g. k=2 or a=2,b=3"),
}
_METAVARS = {int: "N", float: "X", list: "X[,X...]", dict: "NAME=X[,...]"}


def given_options(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Return the fields of a configuration that are given on the command line."""
    return {e.name: getattr(arguments, e.name) for e in dataclasses.fields(Config) if hasattr(arguments, e.name)}


def check_active(given: Iterable[str], configs: Sequence[Config]) -> None:
    """Refuse an option of the command line that has an effect in none of these configurations."""
    for name in given:
        if not any(config.acts(name) for config in configs):
            by = configs[0].inactive_options[name]
            raise UserError(f"{flag(name)} has no effect with {flag(by)} {getattr(configs[0], by)}; remove it")


def config_corpus(config: Config, data_dir: Optional[str], moved_to: Optional[str] = None) -> Corpus:
    """Load the corpus that a configuration names, or the same text at its new place."""
    name = full_name(config.corpus if moved_to is None else moved_to)
    try:
        return load_corpus(name, data_dir, max_vocabulary=None if name in NAMES else config.max_vocabulary)
    except UserError as error:
        if moved_to is not None or name in NAMES or os.path.lexists(os.path.expanduser(name)):
            raise
        raise UserError(f"{error}; if the text of this run has moved, say where it is with --corpus") from None


def training_corpus(config: Config, data_dir: Optional[str]) -> Corpus:
    """Load the corpus to train on; a folder of published corpora has to have an effect."""
    if data_dir is not None and config.corpus not in PUBLISHED:
        raise UserError(f"--data-dir has no effect with --corpus {config.corpus}; remove it")
    return config_corpus(config, data_dir)


def best_model(
    directory: RunDirectory, config: Config, vocabulary_size: int, predictions: int, device_name: str
) -> Tuple[LanguageModel, mx.Context]:
    """Return the model of a run with the weights of its best epoch, and the device of this name, where it is."""
    device = find_device(device_name)
    model = initial_model(config, vocabulary_size, device, predictions)
    directory.load_best_weights(model)
    model.hybridize()
    return model, device


def check_output(path: Path, endings: Sequence[str]) -> None:
    """Refuse a file to write whose name has none of these endings, or whose folder is not there.

    The ending keeps a run's own files from being overwritten.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file; name another one")
    if path.suffix.lower() not in endings:
        raise UserError(f"cannot write {path}: name a file that ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; make it, or name another one")


def report(line: str) -> None:
    """Print a line of a run's story on stdout, above the progress bar on stderr."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(escape_unprintable(line), flush=True)
