"""`noisin data`: find, download, check and describe corpora."""

from __future__ import annotations

import argparse

from noisin.commands.options import add_data_dir
from noisin.data.corpus import load_corpus
from noisin.data.published import NAMES
from noisin.data.table1 import table1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.description = (
        "Find each corpus, download it if it is found nowhere, check it, and print a table of its tokens, vocabulary "
        "and unknown words, like Table 1 of the paper."
    )
    parser.add_argument(
        "corpora", nargs="+", metavar="CORPUS", help=f"{', '.join(NAMES)}, or the path of your own text"
    )
    add_data_dir(parser)
    parser.add_argument("--no-download", action="store_true", help="download nothing")


def run(arguments: argparse.Namespace) -> None:
    """Print the table of the corpora."""
    corpora = [load_corpus(name, arguments.data_dir, download=not arguments.no_download) for name in arguments.corpora]
    print(table1(corpora))
