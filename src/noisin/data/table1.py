"""Table 1 of the paper: sizes and vocabularies of corpora."""

from __future__ import annotations

from typing import List, Sequence

import numpy as np

from noisin.data.corpus import Corpus
from noisin.data.encoding import UNKNOWN
from noisin.data.published import PUBLISHED, SPLITS, Column
from noisin.tables import escape_markdown, markdown


def table1(corpora: Sequence[Corpus]) -> str:
    """Table 1 of the paper, ours beside the paper's numbers.

    Parameters
    ----------
    corpora : sequence of Corpus
        One column each, and one more with the paper's numbers for each that is in the paper.

    Returns
    -------
    str
        A Markdown table and notes, without a newline at the end.
    """
    import pandas as pd  # which nothing else needs at the start

    columns = [["", *(f"tokens, {split}" for split in SPLITS), "vocabulary", "`<unk>` rate"]]
    notes = ["`<unk>` rate: share of the training split's tokens, `<eos>` included."]
    for corpus in corpora:
        tokens = {split: len(getattr(corpus, split)) for split in SPLITS}
        unknown_rate = float(np.mean(corpus.train == corpus.vocabulary[UNKNOWN]))
        columns.append(_shown(escape_markdown(corpus.name), Column(tokens, len(corpus.vocabulary), unknown_rate)))
        known = PUBLISHED.get(corpus.name)
        if known and known.paper:
            columns.append(_shown("paper", known.paper))
        if corpus.name == "ptb":
            notes.append(
                "ptb: the paper prints one more token in every split than the files hold with `<eos>` at "
                "each line's end."
            )
        if corpus.floor is not None:
            notes.append(f"{corpus.name}: no model has a perplexity below {corpus.floor:.2f}, but for sampling error.")
    names, *rows = zip(*columns)
    return "\n".join([markdown(pd.DataFrame(rows, columns=names), align="right"), "", *notes])


def _shown(name: str, column: Column) -> List[str]:
    tokens = (f"{column.tokens[split]:,}" for split in SPLITS)
    return [name, *tokens, f"{column.vocabulary:,}", f"{column.unknown_rate:.1%}"]
