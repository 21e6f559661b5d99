"""The exception for a user's mistake, and how messages write counts, values and foreign text."""

from __future__ import annotations

import re
import reprlib

_LONGEST = 2000  # characters of a message, which must not quote a whole file


class UserError(Exception):
    """A user's mistake, e.g. a missing file, an invalid value, no network.

    The message is one line that says what is wrong, where, and what to do. The command line prints it on standard error
    without a traceback and exits with status 2.

    Parameters
    ----------
    message : str
        It may quote a file or its name: unprintable characters (e.g. a new line, a terminal command) are escaped, and
        the middle of a message of more than 2,000 characters is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shortened(escape_unprintable(_shortened(message))))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def escape_unprintable(text: str) -> str:
    """Return the text with all unprintable characters, e.g. new lines and terminal commands, escaped as in Python."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def escape_control(text: str) -> str:
    """Return the text with control characters, which may be terminal commands, escaped as in Python."""
    return re.sub("[\x00-\x1f\x7f-\x9f]", lambda sign: ascii(sign[0])[1:-1], text)


def plural(number: int, what: str) -> str:
    """Return a count in words, e.g. '1 epoch' or '2,000 epochs'."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def short_repr(value: object) -> str:
    """Return a value's Python representation for a message, shortened where it is long or deep."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
