"""The command `noisin`, as `python -m noisin`."""

from __future__ import annotations

import sys

from noisin.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
