"""A text as token ids: its words, numbered in one pass, and the vocabulary that their counts make."""

from __future__ import annotations

import codecs
import io
import itertools
from array import array
from collections import defaultdict
from pathlib import Path
from typing import DefaultDict, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import gluonnlp
import numpy as np

from noisin.data.published import SPLITS
from noisin.system.errors import UserError
from noisin.system.files import MEMORY

UNKNOWN, END = "<unk>", "<eos>"
TOKEN_BYTES, TYPE_BYTES = 22, 300  # of memory that encoding takes, measured: 13 to 22, and 280 for words of 10 letters
PIECE = 2**16  # bytes of a text that are read at a time, and characters of the longest word


def encode(files: Mapping[str, Path], max_vocabulary: Optional[int]) -> Tuple[List[str], Dict[str, np.ndarray]]:
    """Return the types of the vocabulary that the training split's counts make, and every split as their ids.

    One pass over the text numbers its words as they first appear: four bytes a token, where words as Python strings, as
    gluonnlp's CorpusDataset keeps them, take fifty and more.
    """
    numbers: DefaultDict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    texts = {part: _number_words(path, numbers) for part, path in files.items()}
    if "text" in texts:
        words, ends = texts["text"]
        cuts = [len(ends) * tenths // 10 for tenths in (0, 8, 9, 10)]
        bounds = [0, *(int(ends[cut - 1]) if cut else 0 for cut in cuts[1:])]
        texts = {s: (words[bounds[i] : bounds[i + 1]], ends[cuts[i] : cuts[i + 1]]) for i, s in enumerate(SPLITS)}
    for split, (words, ends) in texts.items():
        if len(words) == len(ends):  # a line is never shorter than its <eos>
            path = files.get(split) or files["text"]
            raise UserError(
                f"{path}: the {split} split is empty, at least one word expected; "
                + ("fill the file" if split in files else "ten lines or more are needed to split a file 80/10/10")
            )
    counts = np.bincount(texts["train"][0], minlength=len(numbers))
    vocabulary = _vocabulary({word: count for word, count in zip(numbers, counts.tolist()) if count}, max_vocabulary)
    ids = np.fromiter(map(vocabulary.token_to_idx.__getitem__, numbers), dtype=np.int32, count=len(numbers))
    return vocabulary.idx_to_token, {split: ids[texts[split][0]] for split in SPLITS}


def _number_words(path: Path, numbers: DefaultDict[str, int]) -> Tuple[np.ndarray, np.ndarray]:
    """Return the number of each word, <eos> after every line, and for each line how many there are up to its end.

    Empty lines count, as in Table 1.
    """
    words, ends = array("i"), array("q")
    for piece, ended in _pieces(path):
        words.extend(map(numbers.__getitem__, piece.split()))
        if len(words) * TOKEN_BYTES + len(numbers) * TYPE_BYTES > MEMORY:
            raise UserError(f"{path}: more words than fit into this machine's memory; use less of the text")
        if ended:
            words.append(numbers[END])
            ends.append(len(words))
    return np.frombuffer(words, dtype=np.int32), np.frombuffer(ends, dtype=np.int64)


def _pieces(path: Path) -> Iterator[Tuple[str, bool]]:
    """Yield a text line by line and, so that no line is too long for the memory, long ones in pieces of whole words.

    Each comes with whether its line ends there.
    """
    rest, ended = "", True
    for text in itertools.chain(_decoded(path), [""]):
        last = "" if not text or text[-1].isspace() else (rest + text).rsplit(None, 1)[-1]  # it may go on
        text, rest = f"{rest}{text}"[: len(rest) + len(text) - len(last)], last
        if max(map(len, [rest, *text.split(None, 1)[:1]])) > PIECE:  # of the others none is longer than a piece
            raise UserError(f"{path}: a word of more than {PIECE:,} characters; expected text, words between spaces")
        *lines, part = f"{text}|".splitlines()  # with the mark, the last is what no line end follows
        yield from ((line, True) for line in lines)
        if part != "|":
            yield part[:-1], False
        ended = part == "|" and (ended or bool(lines))
    if not ended:
        yield "", True


def _decoded(path: Path) -> Iterator[str]:
    """Yield a text in pieces that may end anywhere, its lines ended by a new line."""
    # utf-8-sig: a byte-order mark, which some editors write, is not part of the first word.
    decoder, lines = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True), 1
    with open(path, "rb") as file:
        for content in itertools.chain(iter(lambda: file.read(PIECE), b""), [b""]):
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                line = lines + error.object.count(b"\n", 0, error.start)
                problem = f"line {line} is not valid UTF-8; expected UTF-8 text; convert it first"
                raise UserError(f"{path}: {problem}") from None
            lines += content.count(b"\n")
            if text:
                yield text


def _vocabulary(counts: Mapping[str, int], max_size: Optional[int] = None) -> gluonnlp.Vocab:
    """Index <unk>, <eos> and then the types by frequency (equal ones alphabetically), `max_size` in all."""
    words = None if max_size is None else max_size - 2  # Vocab does not count the special tokens
    return gluonnlp.Vocab(
        counts, max_size=words, unknown_token=UNKNOWN, padding_token=None, bos_token=None, eos_token=END
    )


def ordered_vocabulary(types: Sequence[str]) -> gluonnlp.Vocab:
    """Index types in the order they are given in; the first two must be <unk> and <eos>."""
    return _vocabulary({token: len(types) - rank for rank, token in enumerate(types)})
