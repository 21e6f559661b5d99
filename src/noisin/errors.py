"""The one exception that stands for a mistake of the user's rather than of the program's."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's: a missing file, a bad value, no network.

    The message is one line that names the culprit, what was expected and what to do. The command line prints it on
    standard error without a traceback and exits with status 2.
    """
