"""The command `noisin`: the list of its commands."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Optional, Sequence

from noisin import __version__
from noisin.commands.parser import EPILOG, OneLineParser, run_command
from noisin.system.process import end_with_parent

# To add a command, name it here and write `noisin.commands.NAME` with two functions: `add_arguments(parser)`, and
# `run(arguments)`, which returns the exit status, or None for 0. Only the command that is asked for is imported.
COMMANDS = {
    "data": "find, download, check and describe corpora",
    "train": "train one model, or resume its training",
    "tune": "search gamma, noise, dropout rates and learning rate by validation perplexity",
    "evaluate": "print the perplexities of a trained model",
    "robustness": "measure the calibration of trained models, and their perplexity under noise",
    "sample": "write text from a trained model",
    "export": "write a trained model as an ONNX file",
    "compare": "compare runs in a table and draw their curves",
    "runs": "list runs with their status, best epoch and perplexities",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return the exit status, as `run_command` does."""
    end_with_parent()
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command("noisin", lambda: _parsed(words, argv is None), lambda arguments: arguments.work(arguments))


def _parsed(words: Sequence[str], in_own_process: bool) -> argparse.Namespace:
    parser = OneLineParser(prog="noisin", description="Recurrent language models regularised by noise.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"noisin {__version__}")
    parser.set_defaults(in_own_process=in_own_process)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, says in COMMANDS.items():
        command = commands.add_parser(name, help=says, epilog=EPILOG)
        if name in words:
            module = import_module(f"noisin.commands.{name}")
            command.set_defaults(parser=command, work=module.run)
            module.add_arguments(command)
    return parser.parse_args(words)
