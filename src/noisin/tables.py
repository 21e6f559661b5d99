"""Tables as Markdown, aligned for reading as text too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from noisin.system.errors import printable

if TYPE_CHECKING:
    import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table, columns to the left."""
    return aligned([list(map(str, table.columns)), *(list(map(str, row)) for row in table.itertuples(index=False))])


def escape_markdown(text: str) -> str:
    """A text as a cell shows it: nothing in it is a new line, a column, HTML, code, a link or a terminal's command."""
    text = printable(" ".join(text.split()))
    for special, escaped in (("\\", r"\\"), ("|", r"\|"), ("<", "&lt;"), ("`", r"\`"), ("[", r"\[")):
        text = text.replace(special, escaped)
    return text


def aligned(rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """A Markdown table of rows of cells, the first one its head, columns to the left or to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    pad = str.rjust if right else str.ljust
    text = ["| " + " | ".join(pad(cell, width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if right else "-") for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])
