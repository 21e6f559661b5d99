"""`noisin compare`: runs side by side, in a table and a figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from noisin.commands.options import PERPLEXITIES, PICTURES, add_figure, check_output
from noisin.runs.comparison import compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.description = (
        "Print a table of runs, with the options in which they differ, and draw their perplexity epoch by epoch. Runs "
        f"that are still training are shown as far as they are.\n\n{PERPLEXITIES}"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run directories, made by noisin train")
    add_figure(parser, "comparison.png")


def run(arguments: argparse.Namespace) -> None:
    """Print the table and draw the curves."""
    check_output(arguments.figure, PICTURES)
    print(compare(arguments.runs, arguments.figure))
