"""`noisin export`: a trained model as an ONNX file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from noisin.commands.options import add_run, best_model, check_output
from noisin.runs.directory import RunDirectory
from noisin.system.errors import UserError, escape_unprintable, short_repr
from noisin.system.files import write_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.description = (
        "Write a trained network, with the noise off, as an ONNX model. It maps tokens (T, B) and states (B, hidden) "
        "to log_probabilities (T, B, V) and the next states, for any number of steps T and sequences B. Its metadata "
        "include the vocabulary. docs/export.md shows how to use it."
    )
    add_run(parser)
    parser.add_argument("model", metavar="MODEL.onnx", type=_file, help="file to write; an existing one is replaced")


def _file(text: str) -> Path:
    """Return an argument's type: the file to write. A single argument is that file, and not the run."""
    if os.path.exists(os.path.join(text, "config.json")):
        raise argparse.ArgumentTypeError(f"{short_repr(text)} is a run: name the file to write behind it")
    return Path(text)


def run(arguments: argparse.Namespace) -> None:
    """Write the file."""
    try:
        from noisin.export import to_onnx  # with onnx, an extra
    except ImportError as error:
        raise UserError(f"export needs onnx ({error}): pip install '.[onnx]' in noisin's folder") from None
    path = arguments.model
    check_output(path, (".onnx",))
    directory = RunDirectory(arguments.run)
    config, vocabulary = directory.read_config(), directory.read_vocabulary()
    model, _ = best_model(directory, config, len(vocabulary), 1, "cpu")
    content = to_onnx(model, config, vocabulary)
    write_file(path, content)
    print(f"Written: {escape_unprintable(str(path))}")
