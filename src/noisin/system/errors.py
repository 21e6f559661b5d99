"""The one exception that stands for a mistake of the user's rather than of the program's."""

from __future__ import annotations

import re
import reprlib
from typing import Any

_LONGEST = 2000  # characters of a message; a whole file must not come with it


class UserError(Exception):
    """A mistake of the user's: a missing file, a bad value, no network.

    The message is one line that names the culprit, what was expected and what to do. The command line prints it on
    standard error without a traceback and exits with status 2.

    Parameters
    ----------
    message : str
        May quote a file or its name: what is not printable (a new line, a command to the terminal) is escaped, and the
        middle of a long one left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shortened(printable(_shortened(message))))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def printable(text: str) -> str:
    """The text with what is not printable, as a new line or a command to the terminal, written as Python does."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def harmless(text: str) -> str:
    """The text with control characters alone, which may be commands to the terminal, written as Python does."""
    return re.sub("[\x00-\x1f\x7f-\x9f]", lambda sign: ascii(sign[0])[1:-1], text)


def quoted(value: Any) -> str:
    """A value from a file as a message shows it: as Python writes it, but never long or deep."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
