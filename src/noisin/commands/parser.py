"""What every command line of this repository shares: the parser, types of arguments, and errors in one line."""

from __future__ import annotations

import argparse
import atexit
import difflib
import errno
import io
import math
import os
import re
import signal
import sys
import textwrap
from typing import Any, Callable, List, NoReturn, Optional

from noisin.system.errors import UserError, escape_unprintable

EPILOG = "Invalid input ends with one line on stderr and exit status 2, an interruption (Ctrl-C) with status 130."


def run_command(
    program: str,
    parse: Callable[[], argparse.Namespace],
    work: Callable[[argparse.Namespace], Optional[int]],
) -> int:
    """Parse a command line and do its work, and say in one line what a user can cause.

    Parameters
    ----------
    program : str
        Its name.
    parse : function () -> argparse.Namespace
        Returns the arguments; `again` of them, if there is one, says what an interruption leaves.
    work : function (argparse.Namespace) -> int or None
        Returns the exit status, or None for 0.

    Returns
    -------
    int
        The exit status: that of the work, 2 for a user's mistake, 130 for an interruption, 141 where the reader of the
        output has gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name may have what the output's encoding has not. In a file too, a line is there once it is printed, and
        # before what stderr says next.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    again = "nothing is left half-written"
    try:
        arguments = parse()  # which imports what the command needs
        again = getattr(arguments, "again", again)
        status = work(arguments) or 0
        if sys.stdout is not None:  # which the caller may have closed
            sys.stdout.flush()
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # what is left of a bar
        print(f"{clear}{program}: interrupted; {again}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:  # Python's and NumPy's; MXNet's, which is not imported here
        if not isinstance(error, MemoryError) and not re.search("Failed to allocate|bad_alloc", str(error)):
            raise  # a defect of ours
        says = "the memory is full; choose a smaller network, batch size, unroll length, number of samples or text"
        print(f"{program}: error: {says}", file=sys.stderr)
        if "mxnet" in sys.modules:  # which would say once more, with a traceback, what its engine could not do
            atexit.unregister(sys.modules["mxnet.base"]._notify_shutdown)
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


class _Formatter(argparse.HelpFormatter):
    """Breaks no name at its hyphen, and keeps the lines of a description, so that it can have a list."""

    def _split_lines(self, text: str, width: int) -> List[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrapper = textwrap.TextWrapper(width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        return "\n".join(map(wrapper.fill, text.splitlines()))


class OneLineParser(argparse.ArgumentParser):
    """Argparse whose errors are one line, of the command that they are about."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, **options)

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


def number(holds: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """Return an argument's type: a number for which `holds` is true, which `expected` describes."""

    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {expected}")
        return value

    return parsed


def names(text: str) -> List[str]:
    """An argument's type: names with commas between them, each once."""
    found = list(dict.fromkeys(text.replace(",", " ").split()))
    if not found:
        raise argparse.ArgumentTypeError("nothing is named")
    return found
