"""A text as token ids: its words, numbered in one pass, and the vocabulary that their counts make."""

from __future__ import annotations

import io
import re
from array import array
from collections import defaultdict
from pathlib import Path
from typing import DefaultDict, Dict, Iterator, Mapping, Optional, Sequence, Tuple

import gluonnlp
import numpy as np

from noisin.data.published import SPLITS, Text
from noisin.system.errors import UserError
from noisin.system.files import MEMORY

UNKNOWN, END = "<unk>", "<eos>"
TOKEN_BYTES, TYPE_BYTES = 22, 300  # of memory that encoding takes, measured: 13 to 22, and 280 for words of 10 letters
PIECE = 2**16  # bytes of a text that are read at a time, and characters of the longest word


def encode(texts: Mapping[str, Text], max_vocabulary: Optional[int]) -> Tuple[gluonnlp.Vocab, Dict[str, np.ndarray]]:
    """Return the vocabulary that the training split's counts make, and every split as their ids."""
    splits = {}
    numbers, numbered = _number_texts(texts)
    for part, (words, ends) in numbered.items():
        splits.update({part: words} if part in SPLITS else _split(texts[part].path, words, ends))
    counts = np.bincount(splits["train"], minlength=len(numbers))
    vocabulary = _vocabulary({word: count for word, count in zip(numbers, counts.tolist()) if count}, max_vocabulary)
    ids = np.fromiter(map(vocabulary.token_to_idx.__getitem__, numbers), dtype=np.int32, count=len(numbers))
    return vocabulary, {split: ids[splits[split]] for split in SPLITS}


def encode_with(text: Text, vocabulary: gluonnlp.Vocab) -> Tuple[np.ndarray, int]:
    """Return a whole text as ids of a given vocabulary, and how many of its words the vocabulary lacks."""
    numbers, numbered = _number_texts({"text": text})
    words, _ = numbered["text"]
    return translate(list(numbers), words, vocabulary)


def translate(types: Sequence[str], tokens: np.ndarray, vocabulary: gluonnlp.Vocab) -> Tuple[np.ndarray, int]:
    """Return tokens, which are places in `types`, as ids of a vocabulary, and how many of them it lacks."""
    unknown = np.array([word not in vocabulary.token_to_idx for word in types])
    return np.array(vocabulary[list(types)], dtype=np.int32)[tokens], int(unknown[tokens].sum())


def _number_texts(
    texts: Mapping[str, Text],
) -> Tuple[DefaultDict[str, int], Dict[str, Tuple[np.ndarray, np.ndarray]]]:
    """Number the words of texts as they first appear, in one pass.

    That takes four bytes a token, where words as Python strings, as gluonnlp's CorpusDataset keeps them, take fifty and
    more.
    """
    numbers: DefaultDict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    numbered = {}
    for part, text in texts.items():
        words, ends = _number_words(text, numbers)
        if len(words) == len(ends):  # a line is never shorter than its <eos>
            raise UserError(f"{text.path}: holds no word; expected UTF-8 text")
        numbered[part] = words, ends
    return numbers, numbered


def _split(path: Path, words: np.ndarray, ends: np.ndarray) -> Dict[str, np.ndarray]:
    """Cut a text 80/10/10: by lines or, where a split would then have no word, by words (a text of one line)."""
    ends = ends[: np.flatnonzero(np.diff(ends, prepend=0) > 1)[-1] + 1]  # blank lines at its end count as nothing
    size = int(ends[-1])
    by_lines = [int(ends[cut - 1]) if cut else 0 for cut in (len(ends) * tenths // 10 for tenths in (8, 9))]
    counts = ends - np.arange(1, len(ends) + 1)  # of the words up to each line's end, without any <eos>
    cuts = [int(counts[-1]) * tenths // 10 for tenths in (8, 9)]
    by_words = [cut + int(np.searchsorted(counts, cut, side="right")) for cut in cuts]
    for cuts in (by_lines, by_words):
        bounds = [0, *cuts, size]
        lines = np.searchsorted(ends, bounds, side="right")
        if (np.diff(bounds) > np.diff(lines)).all():  # each has a word besides the <eos> of its lines
            return {split: words[bounds[i] : bounds[i + 1]] for i, split in enumerate(SPLITS)}
    raise UserError(f"{path}: too short to be split 80/10/10; use more text")


def _number_words(text: Text, numbers: DefaultDict[str, int]) -> Tuple[np.ndarray, np.ndarray]:
    """Return the number of each word, <eos> after every line, and for each line how many there are up to its end.

    Empty lines count, as in Table 1.
    """
    words, ends = array("i"), array("q")
    for piece, ended in _pieces(text):
        words.extend(map(numbers.__getitem__, piece.split()))
        if len(text.content) + len(words) * TOKEN_BYTES + len(numbers) * TYPE_BYTES > MEMORY:
            raise UserError(f"{text.path}: more words than fit into this machine's memory; use less of the text")
        if ended:
            words.append(numbers[END])
            ends.append(len(words))
    return np.frombuffer(words, dtype=np.int32), np.frombuffer(ends, dtype=np.int64)


def _pieces(whole: Text) -> Iterator[Tuple[str, bool]]:
    r"""Yield a text line by line and, so that no line is too long for the memory, long ones in pieces of whole words.

    Each comes with whether its line ends there. Lines end at \n, \r\n and \r alone, as for the tools whose counts are
    compared with ours; at what else Unicode calls a line's end (U+2028, form feed), only words end.
    """
    zero = whole.content.find(b"\0")
    if zero >= 0:
        raise _not_text(whole, zero, "holds a zero byte, as UTF-16 does")
    # utf-8-sig: a byte-order mark, which some editors write, is not part of the first word.
    file, rest, ended = io.TextIOWrapper(io.BytesIO(whole.content), "utf-8-sig"), "", True
    try:
        for piece in iter(lambda: file.readline(PIECE), ""):
            text, ended = rest + piece, piece.endswith("\n")
            rest = "" if text[-1].isspace() else text.rsplit(None, 1)[-1]  # a word that may go on
            text = text[: len(text) - len(rest)]
            if max(map(len, [rest, *text.split(None, 1)[:1]])) > PIECE:  # of the others none is longer than a piece
                raise UserError(
                    f"{whole.path}: a word of more than {PIECE:,} characters; expected words between spaces"
                )
            yield text, ended
    except UnicodeDecodeError:  # of a part of the text; its place in the whole is wanted
        try:
            whole.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_text(whole, error.start, "is not valid UTF-8") from None
    if not ended:
        yield rest, True


def _not_text(text: Text, position: int, problem: str) -> UserError:
    line = 1 + sum(1 for _ in re.finditer(rb"\r\n?|\n", text.content[:position]))
    return UserError(f"{text.path}: line {line} {problem}; expected UTF-8 text; convert it first")


def _vocabulary(counts: Mapping[str, int], max_size: Optional[int] = None) -> gluonnlp.Vocab:
    """Index <unk>, <eos> and then the types by frequency (equal ones alphabetically), `max_size` in all."""
    words = None if max_size is None else max_size - 2  # Vocab does not count the special tokens
    return gluonnlp.Vocab(
        counts, max_size=words, unknown_token=UNKNOWN, padding_token=None, bos_token=None, eos_token=END
    )


def ordered_vocabulary(types: Sequence[str]) -> gluonnlp.Vocab:
    """Index types in the order they are given in; the first two must be <unk> and <eos>."""
    return _vocabulary({token: len(types) - rank for rank, token in enumerate(types)})
