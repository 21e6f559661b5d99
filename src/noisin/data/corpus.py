"""Corpora by name or path: their vocabularies and token ids. See docs/formats.md."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Mapping, Optional, Tuple

import gluonnlp
import numpy as np

from noisin.data import synthetic
from noisin.data.encoding import encode, encode_with, ordered_vocabulary, translate
from noisin.data.published import NAMES, PUBLISHED, SPLITS, Text, find_texts, full_name
from noisin.system.errors import UserError, escape_unprintable
from noisin.system.files import read_regular

OWN_VOCABULARY = 10_000  # types of a user's own text by default, as many as the Penn Treebank has

_EXPECTED = f"{', '.join(NAMES)}, a text file, or a folder with train.txt, valid.txt and test.txt"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in three splits, as token ids.

    Parameters
    ----------
    name : str
        ``ptb``, ``wikitext-2``, ``synthetic``, or the name of the user's own file or folder.
    vocabulary : gluonnlp.Vocab
        Types in the order of their frequency after ``<unk>`` (id 0) and ``<eos>`` (id 1); no padding.
    train, valid, test : np.ndarray, shape (N,), int32
        Token ids with ``<eos>`` after every line, empty ones too.
    digest : str
        sha256 over the contents of the files, the same wherever they lie.
    entropy_rate : float, optional
        Nats a token, where the source is known (the synthetic corpus).
    """

    name: str
    vocabulary: gluonnlp.Vocab
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    digest: str
    entropy_rate: Optional[float] = None

    @property
    def floor(self) -> Optional[float]:
        """The perplexity no model can beat but for sampling error, exp(entropy_rate); None for an unknown source."""
        return None if self.entropy_rate is None else math.exp(self.entropy_rate)


def load_corpus(
    name: str, data_dir: Optional[str] = None, download: bool = True, max_vocabulary: Optional[int] = None
) -> Corpus:
    """Find, check and encode a corpus (docs/formats.md).

    Parameters
    ----------
    name : str
        ``ptb``, ``wikitext-2``, ``synthetic``, or a path to one's own text: a folder that holds train.txt, valid.txt
        and test.txt, or one UTF-8 file, which is split 80/10/10: by lines or, where it has too few, by words; blank
        lines at its end count as nothing. Words are what white space separates. Write ``./ptb`` for a folder of one's
        own of that name.
    data_dir : str, optional
        Folder in which ``ptb/`` or ``wikitext-2/`` is looked for first. Then come the environment variable NOISIN_DATA
        and ``data/`` under the current directory.
    download : bool, default True
        Whether files found nowhere are downloaded into ``data/``.
    max_vocabulary : int, optional
        Types of one's own text, ``<unk>`` and ``<eos>`` included: the most frequent of the training split, 10,000 by
        default; all other words become ``<unk>``. The named corpora keep their published vocabularies.

    Returns
    -------
    Corpus

    Raises
    ------
    UserError
        If a file is missing, damaged, unreadable, not UTF-8 or without words, or no download works; one line that
        names the file, what was expected and what to do.
    """
    name = full_name(name)
    if max_vocabulary is not None:
        if name in NAMES:
            raise UserError(f"max_vocabulary = {max_vocabulary}: {name} keeps its published vocabulary; leave it out")
        if max_vocabulary < 3:
            raise UserError(f"max_vocabulary = {max_vocabulary}: at least 3 expected (<unk>, <eos> and a word)")
    if name == "synthetic":
        return _synthetic_corpus()
    if name in PUBLISHED:
        return _load(name, find_texts(PUBLISHED[name], data_dir, download), None)
    texts = {part: Text(file, read_regular(file, "UTF-8 text")) for part, file in _own_files(name).items()}
    return _load(short_name(name), texts, max_vocabulary or OWN_VOCABULARY)


def short_name(corpus: str) -> str:
    """Return the name of a corpus; for your own text its file's or folder's, with `own-` before a published name."""
    if full_name(corpus) in NAMES:
        return full_name(corpus)
    name = escape_unprintable(Path(os.path.expanduser(corpus)).resolve().name)
    return f"own-{name}" if name in NAMES else name


def load_split(
    name: str, split: str, vocabulary: gluonnlp.Vocab, data_dir: Optional[str] = None
) -> Tuple[str, np.ndarray, int]:
    """Find and check one split of a corpus, or the whole of a text in a single file, and encode it by a vocabulary.

    Parameters
    ----------
    name, data_dir
        As in `load_corpus`.
    split : str
        ``train``, ``valid`` or ``test``; of a single file all is taken.
    vocabulary : gluonnlp.Vocab
        That of another corpus.

    Returns
    -------
    (str, array (N,) of int32, int)
        The split, ``all`` of a single file; its token ids, ``<unk>`` for words that the vocabulary lacks; and how many
        these are.

    Raises
    ------
    UserError
        As `load_corpus`.
    """
    name = full_name(name)
    if name == "synthetic":
        corpus = _synthetic_corpus()
        return (split, *translate(corpus.vocabulary.idx_to_token, getattr(corpus, split), vocabulary))
    if name in PUBLISHED:
        return (split, *encode_with(find_texts(PUBLISHED[name], data_dir, download=True)[split], vocabulary))
    files = _own_files(name)
    part, file = ("all", files["text"]) if "text" in files else (split, files[split])
    return (part, *encode_with(Text(file, read_regular(file, "UTF-8 text")), vocabulary))


def _synthetic_corpus() -> Corpus:
    source, splits = synthetic.source(), synthetic.splits()
    digest = _digest([f"synthetic {synthetic.VERSION}"] + [splits[split].tobytes().hex() for split in SPLITS])
    # The ids are the states of the source, so that its probabilities can be looked up by them.
    vocabulary = ordered_vocabulary(source.types)
    return Corpus("synthetic", vocabulary, digest=digest, entropy_rate=source.entropy_rate, **splits)


def _own_files(name: str) -> Dict[str, Path]:
    """Return the files of a user's own text: one for each split, or a single one under the key ``text``."""
    if not name:
        raise UserError(f"the name of the corpus is empty; expected {_EXPECTED}")
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        files = {split: path / f"{split}.txt" for split in SPLITS}
        if not any(map(os.path.lexists, files.values())):
            raise UserError(f"{path}: no text in this folder; put train.txt, valid.txt and test.txt there")
        return files
    if os.path.lexists(path):
        return {"text": path}
    close = difflib.get_close_matches(str(path).lower(), NAMES, 1)
    raise UserError(
        f"{path}: no such corpus or file; " + (f"did you mean {close[0]}? " if close else "") + f"expected {_EXPECTED}"
    )


def _load(name: str, texts: Mapping[str, Text], max_vocabulary: Optional[int]) -> Corpus:
    digest = _digest(hashlib.sha256(text.content).hexdigest() for text in texts.values())
    vocabulary, splits = encode(texts, max_vocabulary)
    return Corpus(name, vocabulary, splits["train"], splits["valid"], splits["test"], digest)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
