"""Commands that must be refused."""

from __future__ import annotations

from noisin.commands.main import main


def refused(capsys, *arguments):
    """Run `noisin` with these words, which must fail as a user's mistake does, and return the one line it says."""
    try:
        status = main(list(map(str, arguments)))
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1 and "error: " in captured.err, captured.err
    return captured.err
