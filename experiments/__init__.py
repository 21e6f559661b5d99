"""What the paper ran, as data, and the runner that runs it: `python -m experiments --help`."""

import noisin  # noqa: F401  first of all, so that a broken environment is one line, not a traceback
