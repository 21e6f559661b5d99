"""Markdown tables whose columns are also aligned as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisin.system.errors import escape_unprintable

if TYPE_CHECKING:
    import pandas as pd


def markdown(table: pd.DataFrame, align: str = "left") -> str:
    """A Markdown table of text, aligned for reading as text too; columns to the left, or to the right."""
    return table.to_markdown(index=False, disable_numparse=True, stralign=align)


def escape_markdown(text: str) -> str:
    """A text as a cell shows it: nothing in it is a new line, a column, HTML, code, a link or a terminal's command."""
    text = escape_unprintable(" ".join(text.split()))
    for special, escaped in (("\\", r"\\"), ("|", r"\|"), ("<", "&lt;"), ("`", r"\`"), ("[", r"\[")):
        text = text.replace(special, escaped)
    return text
