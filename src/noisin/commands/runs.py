"""`noisin runs`: a table of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from noisin.commands.options import PERPLEXITIES
from noisin.runs.listing import DAMAGED, runs_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.description = (
        "List the runs below a folder: status, best epoch, its validation perplexity (noise off) and gamma, and test "
        f"perplexities, if the run was tested.\n\n{PERPLEXITIES}"
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of runs (default: runs)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table; the exit status is 2, as from other commands, if one of the runs is damaged."""
    table = runs_table(arguments.folder)
    print(table.to_string(index=False))
    return 2 if (table["status"] == DAMAGED).any() else 0
