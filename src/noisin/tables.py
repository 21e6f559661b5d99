"""Markdown tables whose columns are also aligned as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """Return a data frame as a Markdown table without its index, left-aligned."""
    return aligned([list(map(str, table.columns)), *(list(map(str, row)) for row in table.itertuples(index=False))])


def aligned(rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """Return rows of cells as a Markdown table; the first row is the header, and `right` aligns all columns right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    pad = str.rjust if right else str.ljust
    text = ["| " + " | ".join(pad(cell, width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if right else "-") for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])
