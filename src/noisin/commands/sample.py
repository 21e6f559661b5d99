"""`noisin sample`: text from a trained model."""

from __future__ import annotations

import argparse
import itertools
import math
import sys

from noisin.commands.options import add_device, add_run, best_model
from noisin.commands.parser import natural, number, positive
from noisin.data.encoding import ordered_vocabulary
from noisin.runs.directory import RunDirectory
from noisin.sampling import sample_words
from noisin.system.errors import escape_control, escape_unprintable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.set_defaults(again="the text is not complete")
    parser.description = "Write text from a trained model, with the noise off."
    add_run(parser)
    parser.add_argument("--words", type=positive, default=100, metavar="N", help="words to write (default: 100)")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="words to continue (default: none, the beginning of a line)"
    )
    parser.add_argument(
        "--temperature",
        type=number(lambda value: 0 <= value < math.inf, "a number of at least 0"),
        default=1.0,
        metavar="X",
        help="below 1, likely words become likelier; 0 takes the likeliest word each time (default: 1)",
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest words (default: all)")
    parser.add_argument(
        "--top-p",
        type=number(lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
        default=1.0,
        metavar="P",
        help="draw from the fewest words that together have probability P or more (default: 1, all words)",
    )
    parser.add_argument("--no-unk", action="store_true", help="never write <unk>, which stands for unknown words")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="random seed (default: 0)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the text, word by word."""
    directory = RunDirectory(arguments.run)
    config = directory.read_config()
    vocabulary = ordered_vocabulary(directory.read_vocabulary())
    model, device = best_model(directory, config, len(vocabulary), 1, arguments.device)
    words = arguments.prompt.split()
    unknown = sorted({word for word in words if word not in vocabulary})
    if unknown:
        print(f"noisin: not in the vocabulary, read as <unk>: {escape_unprintable(' '.join(unknown))}", file=sys.stderr)
    prompt = vocabulary[["<eos>"] + words]
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
