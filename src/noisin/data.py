"""Corpora: their vocabularies and token ids, cached by content, Table 1 and batches. See DESIGN section 6."""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import json
import math
import os
from array import array
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    ContextManager,
    DefaultDict,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import gluonnlp
import numpy as np

from noisin import synthetic
from noisin.published import NAMES, PUBLISHED, SPLITS, find_files
from noisin.system.errors import UserError
from noisin.system.files import MEMORY, hold_folder, parse_json, read_regular, write_bytes

UNKNOWN, END = "<unk>", "<eos>"
OWN_VOCABULARY = 10_000  # types of a user's own text by default, as many as the Penn Treebank has
PATIENCE = 600.0  # seconds to wait for another process that encodes a corpus
TOKEN_BYTES, TYPE_BYTES = 22, 300  # of memory that encoding takes, measured: 13 to 22, and 280 for words of 10 letters
PIECE = 2**16  # bytes of a text that are read at a time, and characters of the longest word
CACHE_FORMAT = 1  # raise it when the meaning of a cached file changes


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
    """Find, check and encode a corpus (DESIGN section 6).

    Parameters
    ----------
    name : str
        ``ptb``, ``wikitext-2``, ``synthetic``, or a path to one's own text: a folder that holds train.txt, valid.txt
        and test.txt, or one UTF-8 file, whose lines are split 80/10/10 in their order. Words are what white space
        separates. Write ``./ptb`` for a folder of one's own of that name.
    data_dir : str, optional
        Folder in which ``ptb/`` or ``wikitext-2/`` is looked for first; by default the environment variable
        NOISIN_DATA. Then comes ``data/`` under the current directory.
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
    if max_vocabulary is not None:
        if name in NAMES:
            raise UserError(f"max_vocabulary = {max_vocabulary}: {name} keeps its published vocabulary; leave it out")
        if max_vocabulary < 3:
            raise UserError(f"max_vocabulary = {max_vocabulary}: at least 3 expected (<unk>, <eos> and a word)")
    if not name:
        raise UserError(
            "the name of the corpus is empty; give ptb, wikitext-2, synthetic, or the path of one's own text"
        )
    if name == "synthetic":
        return _synthetic_corpus()
    if name in PUBLISHED:
        published = PUBLISHED[name]
        files = find_files(published, data_dir, download)
        return _load(name, files, [published.sha256[split] for split in SPLITS], None)
    path = Path(os.path.expanduser(name))
    files = _own_files(path)
    checksums = _checksums(files)
    label = path.resolve().name
    if label in (*PUBLISHED, "synthetic"):
        label = f"own-{label}"  # no table may take it for the published one
    return _load(label, files, checksums, max_vocabulary or OWN_VOCABULARY)


def _synthetic_corpus() -> Corpus:
    source, splits = synthetic.source(), synthetic.splits()
    digest = _digest([f"synthetic {synthetic.VERSION}"] + [splits[split].tobytes().hex() for split in SPLITS])
    # The ids are the states of the source, so that its probabilities can be looked up by them.
    vocabulary = ordered_vocabulary(source.types)
    return Corpus(
        "synthetic", vocabulary, splits["train"], splits["valid"], splits["test"], digest, source.entropy_rate
    )


def _own_files(path: Path) -> Dict[str, Path]:
    """Return the files of a user's own text: one for each split, or a single one under the key ``text``."""
    if os.path.isdir(path):
        return {split: path / f"{split}.txt" for split in SPLITS}
    if os.path.lexists(path):
        return {"text": path}
    raise UserError(
        f"{path}: no such corpus or file; expected {', '.join(PUBLISHED)}, synthetic, a text file, or a folder with "
        "train.txt, valid.txt and test.txt"
    )


def _checksums(files: Mapping[str, Path]) -> List[str]:
    return [hashlib.sha256(read_regular(file, "UTF-8 text")).hexdigest() for file in files.values()]


# --------------------------------------------------------------------------------------------- vocabulary and cache


def _load(name: str, files: Mapping[str, Path], checksums: Sequence[str], max_vocabulary: Optional[int]) -> Corpus:
    """Return the encoded corpus, from the cache if the same contents were encoded before."""
    digest = _digest(checksums)
    cached = _cache_folder() / f"{digest}-{max_vocabulary or 'all'}-v{CACHE_FORMAT}.npz"
    types, splits = _read_cache(cached) or _make_cache(cached, files, checksums, max_vocabulary)
    vocabulary = ordered_vocabulary(types)
    return Corpus(name, vocabulary, splits["train"], splits["valid"], splits["test"], digest)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _encode(files: Mapping[str, Path], max_vocabulary: Optional[int]) -> Tuple[List[str], Dict[str, np.ndarray]]:
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


def _cache_folder() -> Path:
    own = os.environ.get("NOISIN_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(own or os.path.join(general, "noisin")))


def _read_cache(path: Path) -> Optional[Tuple[List[str], Dict[str, np.ndarray]]]:
    """Return (types, splits) as they were cached, or None if they were not or the file is not to be trusted."""
    try:
        # The zip container's checksum covers every array, the vocabulary (JSON as bytes) among them.
        with np.load(io.BytesIO(read_regular(path, "a cached corpus")), allow_pickle=False) as stored:
            if any(entry.compress_type for entry in stored.zip.infolist()):
                return None  # what we write is not compressed, and so holds no more than the file is long
            content = {name: stored[name] for name in (*SPLITS, "vocabulary")}
        header = parse_json(content.pop("vocabulary").tobytes())
        types = header["types"]
        valid = header["key"] == path.stem and _are_types(types) and all(_are_ids(content[s], types) for s in SPLITS)
    except Exception:  # a damaged file fails in any way at all, even with MemoryError for the shape it claims
        return None  # nothing is lost: the corpus is read and checked again, and the cache written anew
    return (types, content) if valid else None


def _make_cache(
    path: Path, files: Mapping[str, Path], checksums: Sequence[str], max_vocabulary: Optional[int]
) -> Tuple[List[str], Dict[str, np.ndarray]]:
    """Encode a corpus, one process at a time, and cache it; or read what a process has cached that was waited for."""
    try:
        lock: ContextManager[Any] = hold_folder(path.parent, PATIENCE)
    except OSError:
        lock = nullcontext()  # the cache only saves time: a folder that cannot be written is no reason to stop
    with lock:
        stored = _read_cache(path)
        if stored is None:
            stored = _encode(files, max_vocabulary)
            if _checksums(files) != list(checksums):  # else another text would be kept under this one's name
                changed = ", ".join(map(str, files.values()))
                raise UserError(f"{changed}: changed while it was read; leave it alone and repeat the command")
            _write_cache(path, *stored)
        return stored


def _are_types(types: Any) -> bool:
    return (
        isinstance(types, list)
        and types[:2] == [UNKNOWN, END]
        and all(isinstance(token, str) for token in types)
        and len(set(types)) == len(types)
    )


def _are_ids(ids: np.ndarray, types: Sequence[str]) -> bool:
    return ids.dtype == np.int32 and ids.ndim == 1 and ids.size > 0 and 0 <= ids.min() and ids.max() < len(types)


def _write_cache(path: Path, types: Sequence[str], splits: Mapping[str, np.ndarray]) -> None:
    header = json.dumps({"key": path.stem, "types": list(types)}, ensure_ascii=False).encode("utf-8")
    # In memory first: on a full disk zipfile fails a second time when it is closed, where nobody can catch it.
    buffer = io.BytesIO()
    np.savez(buffer, vocabulary=np.frombuffer(header, dtype=np.uint8), **splits)
    try:
        write_bytes(path, buffer.getbuffer())
    except OSError:
        pass  # the next time it is encoded again


# ---------------------------------------------------------------------------------------------------------- Table 1


def statistics(corpus: Corpus) -> Dict[str, Any]:
    """Compute a corpus's column of Table 1.

    Parameters
    ----------
    corpus : Corpus

    Returns
    -------
    dict
        ``corpus`` (its name), ``tokens`` (a dict by split, ``<eos>`` included), ``vocabulary`` (types, ``<unk>`` and
        ``<eos>`` included), ``unknown_rate`` (the share of ``<unk>`` in the training split's tokens, ``<eos>``
        included: the definition that gives the paper's 4.8% and 2.6%) and ``floor`` (perplexity, or None).
    """
    unknown = corpus.vocabulary[UNKNOWN]
    return {
        "corpus": corpus.name,
        "tokens": {split: len(getattr(corpus, split)) for split in SPLITS},
        "vocabulary": len(corpus.vocabulary),
        "unknown_rate": float(np.mean(corpus.train == unknown)),
        "floor": corpus.floor,
    }


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
    columns = [["", *(f"tokens, {split}" for split in SPLITS), "vocabulary", "`<unk>` rate"]]
    notes = ["`<unk>` rate: share of the training split's tokens, `<eos>` included."]
    for corpus in corpora:
        numbers = statistics(corpus)
        columns.append(
            [corpus.name, *_table1_numbers(numbers["tokens"], numbers["vocabulary"], numbers["unknown_rate"])]
        )
        published = PUBLISHED.get(corpus.name)
        if published:
            columns.append(
                [
                    "paper",
                    *_table1_numbers(published.paper_tokens, published.paper_vocabulary, published.paper_unknown_rate),
                ]
            )
        if corpus.name == "ptb":
            notes.append(
                "ptb: the paper prints one more token in every split than the files hold with `<eos>` at "
                "each line's end."
            )
        if corpus.floor is not None:
            notes.append(f"{corpus.name}: no model has a perplexity below {corpus.floor:.2f}, but for sampling error.")
    widths = [max(map(len, column)) for column in columns]
    rows = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |" for row in zip(*columns)]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:], "", *notes])


def _table1_numbers(tokens: Mapping[str, int], vocabulary: int, unknown_rate: float) -> List[str]:
    return [*(f"{tokens[split]:,}" for split in SPLITS), f"{vocabulary:,}", f"{unknown_rate:.1%}"]


# ---------------------------------------------------------------------------------------------------------- batches


def number_of_training_batches(tokens: np.ndarray, batch_size: int, unroll: int) -> int:
    """Count what `training_batches` yields for the same arguments (0 if it would refuse them)."""
    _check_shape(batch_size, unroll)
    return max(len(tokens) - 1, 0) // batch_size // unroll


def training_batches(tokens: np.ndarray, batch_size: int, unroll: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Cut a split into batches for truncated backpropagation through time.

    The N - 1 pairs of a token and its successor are laid out in `batch_size` contiguous columns, so that the state
    after one batch is the state before the next. What does not fill the columns is dropped: at most batch_size - 1
    pairs at the end of the text, and the last batch if it has fewer than `unroll` steps (every batch has the same
    shape, and so the hybridized graph is built once).

    Parameters
    ----------
    tokens : np.ndarray, shape (N,), int32
    batch_size : int
        B, the number of columns.
    unroll : int
        T, the number of steps of each batch.

    Returns
    -------
    iterator of (inputs, targets)
        Both of shape (T, B), int32; targets are the inputs' successors in the text.

    Raises
    ------
    UserError
        If there are too few tokens for one batch.

    Examples
    --------
    Twelve tokens make eleven pairs: five in each of two columns (one pair is left over), and two batches of two
    steps (one step of each column is left over).

    >>> for inputs, targets in training_batches(np.arange(12), batch_size=2, unroll=2):
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 5], [1, 6]] [[1, 6], [2, 7]]
    [[2, 7], [3, 8]] [[3, 8], [4, 9]]
    """
    number = number_of_training_batches(tokens, batch_size, unroll)
    if number == 0:
        raise UserError(
            f"the training split has {len(tokens)} tokens, but a batch of {batch_size} columns and {unroll} steps "
            f"takes {batch_size * unroll + 1}; lower the batch size or the unroll, or use more text"
        )
    pairs = (len(tokens) - 1) // batch_size * batch_size
    inputs, targets = _columns(tokens[:pairs], batch_size), _columns(tokens[1 : pairs + 1], batch_size)
    return ((inputs[i : i + unroll], targets[i : i + unroll]) for i in range(0, number * unroll, unroll))


def evaluation_batches(
    tokens: np.ndarray, eos: int, batch_size: int, unroll: int
) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cut a split into batches that score every one of its N tokens exactly once (DESIGN section 5).

    The first token is predicted from an initial `eos`, so there are N targets for N tokens. They are laid out in
    `batch_size` contiguous columns whose length is a multiple of `unroll`; what is left of the last columns is padded
    with weight 0. A column starts without the state of the one before it, so a smaller `batch_size` is a little more
    exact: with 1, every token is predicted from all that precede it.

    Parameters
    ----------
    tokens : np.ndarray, shape (N,), int32
    eos : int
        The id of ``<eos>``.
    batch_size : int
        B, the number of columns.
    unroll : int
        T, the number of steps of each batch.

    Returns
    -------
    iterator of (inputs, targets, weights)
        Each of shape (T, B); int32, int32 and float32. A weight is 1 for a token and 0 for padding.

    Raises
    ------
    UserError
        If there are no tokens.

    Examples
    --------
    Five tokens and an initial 0, in two columns of four steps:

    >>> for inputs, targets, weights in evaluation_batches(np.arange(1, 6), eos=0, batch_size=2, unroll=2):
    ...     print(inputs.tolist(), targets.tolist(), weights.tolist())
    [[0, 4], [1, 0]] [[1, 5], [2, 0]] [[1.0, 1.0], [1.0, 0.0]]
    [[2, 0], [3, 0]] [[3, 0], [4, 0]] [[1.0, 0.0], [1.0, 0.0]]
    """
    _check_shape(batch_size, unroll)
    size = len(tokens)
    if size == 0:
        raise UserError("the split to evaluate has no tokens, at least one expected; use more text")
    number = math.ceil(size / (batch_size * unroll))
    padding = number * unroll * batch_size - size
    inputs = _columns(np.concatenate([[eos], tokens[:-1], np.full(padding, eos)]), batch_size)
    targets = _columns(np.concatenate([tokens, np.full(padding, eos)]), batch_size)
    weights = _columns(np.concatenate([np.ones(size), np.zeros(padding)]), batch_size, np.float32)
    steps = [slice(i, i + unroll) for i in range(0, number * unroll, unroll)]
    return ((inputs[step], targets[step], weights[step]) for step in steps)


def _check_shape(batch_size: int, unroll: int) -> None:
    if batch_size < 1 or unroll < 1:
        raise ValueError(f"batch_size = {batch_size}, unroll = {unroll}: both must be at least 1")


def _columns(flat: np.ndarray, batch_size: int, dtype: type = np.int32) -> np.ndarray:
    """Lay a text out in contiguous columns: shape (length, batch_size)."""
    return np.ascontiguousarray(flat.reshape(batch_size, -1).T, dtype=dtype)
