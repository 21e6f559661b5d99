"""Corpora: files and their errors, download, Table 1, batches, the synthetic source."""

from __future__ import annotations

import dataclasses
import doctest
import gzip
import hashlib
import http.server
import math
import os
import socket
import tarfile
import threading
import time
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pytest
import requests
from helpers.archives import tarred, zipped
from helpers.processes import file_size_limit
from hypothesis import given
from hypothesis import strategies as st

from noisin.config import Config
from noisin.data import batches as cut
from noisin.data import corpus as corpora
from noisin.data import encoding, synthetic
from noisin.data import published as published_corpora
from noisin.data.batches import evaluation_batches, left_out_notice, number_of_training_batches, training_batches
from noisin.data.corpus import Corpus, load_corpus, short_name
from noisin.data.encoding import END
from noisin.data.published import PUBLISHED, SPLITS, PublishedCorpus, Source, Text
from noisin.data.table1 import table1
from noisin.system.errors import UserError
from noisin.system.files import hold_folder, write_whole

# A made-up corpus with an empty line in every split; "wug" is unseen in training.
TEXT = {
    "train": b"dax dax <unk> blick\n\n zorp\tdax zorp \n",
    "valid": b"dax wug\n\n",
    "test": b"\nzorp blick",
}
TOKENS = {
    "train": ["dax", "dax", "<unk>", "blick", "<eos>", "<eos>", "zorp", "dax", "zorp", "<eos>"],
    "valid": ["dax", "<unk>", "<eos>", "<eos>"],
    "test": ["<eos>", "zorp", "blick", "<eos>"],
}


def write_folder(folder: Path, text: Dict[str, bytes] = TEXT, pattern: str = "{split}.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, content in text.items():
        (folder / pattern.format(split=split)).write_bytes(content)
    return folder


def words(corpus: Corpus) -> Dict[str, List[str]]:
    return {split: [corpus.vocabulary.idx_to_token[i] for i in getattr(corpus, split)] for split in SPLITS}


def fails(name: str, **arguments: object) -> str:
    """Load what must be refused, and return the message, which is one line."""
    with pytest.raises(UserError) as caught:
        load_corpus(name, **arguments)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, no corpora and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOISIN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


@pytest.fixture
def fake_ptb(alone: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedCorpus:
    """The made-up corpus in the place of the Penn Treebank, to be downloaded from nowhere."""
    published = dataclasses.replace(
        PUBLISHED["ptb"],
        sizes={split: len(content) for split, content in TEXT.items()},
        sha256={split: hashlib.sha256(content).hexdigest() for split, content in TEXT.items()},
        sources=(),
    )
    monkeypatch.setitem(PUBLISHED, "ptb", published)
    return published


# --------------------------------------------------------------------------------------------------- the real files


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Corpus]:
    folder = os.environ.get("NOISIN_DATA", "data")
    if not all(path.exists() for p in PUBLISHED.values() for path in p.files(Path(folder)).values()):
        pytest.skip(f"the real corpora are not in {folder} (set NOISIN_DATA)")
    return {name: load_corpus(name, download=False) for name in PUBLISHED}


def test_table1_of_the_real_files(real: Dict[str, Corpus]) -> None:
    assert not any(left_out_notice(corpus.train, 32, 35) for corpus in real.values())
    table = table1(list(real.values()))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        ["tokens, train", "929,589", "929,590", "2,088,628", "2,088,628"],
        ["tokens, valid", "73,760", "73,761", "217,646", "217,646"],
        ["tokens, test", "82,430", "82,431", "245,569", "245,569"],
        ["vocabulary", "10,000", "10,000", "33,278", "33,278"],
        ["`<unk>` rate", "4.8%", "4.8%", "2.6%", "2.6%"],
    ]
    assert "one more token" in table


# ---------------------------------------------------------------------------------------------- own text, vocabulary


def test_own_folder(alone: Path) -> None:
    corpus = load_corpus(str(write_folder(alone / "mine")))
    assert words(corpus) == TOKENS
    assert corpus.vocabulary.idx_to_token == ["<unk>", "<eos>", "dax", "zorp", "blick"]
    assert (corpus.vocabulary.eos_token, corpus.vocabulary.unknown_token) == ("<eos>", "<unk>")
    assert corpus.vocabulary.padding_token is None and corpus.vocabulary.bos_token is None
    assert corpus.name == "mine" and corpus.floor is None
    assert all(getattr(corpus, split).dtype == np.int32 for split in SPLITS)
    assert "10.0%" in table1([corpus])


def test_own_file_is_split_by_lines(alone: Path) -> None:
    lines = [f"w{i} \u00e9" for i in range(20)]
    (alone / "mine.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    corpus = load_corpus("mine.txt")
    assert [len(getattr(corpus, split)) for split in SPLITS] == [48, 6, 6]
    assert words(corpus)["train"][:3] == ["w0", "\u00e9", "<eos>"], "the byte-order mark belongs to no word"
    assert words(corpus)["test"] == ["<unk>", "\u00e9", "<eos>"] * 2


def test_own_text_is_not_taken_for_a_published_corpus(alone: Path) -> None:
    corpus = load_corpus(str(write_folder(alone / "ptb")))
    assert corpus.name == "own-ptb" and "paper" not in table1([corpus])
    assert (short_name(str(alone / "ptb")), short_name("ptb")) == ("own-ptb", "ptb")


def test_a_name_that_is_not_utf8_is_escaped(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_folder(alone / "caf\udce9"))
    load_corpus(".").name.encode()  # as a record is written
    assert load_corpus(".").name == r"caf\udce9"


def test_max_vocabulary_counts_all_types(alone: Path) -> None:
    folder = str(write_folder(alone / "mine"))
    assert load_corpus(folder, max_vocabulary=3).vocabulary.idx_to_token == ["<unk>", "<eos>", "dax"]
    assert len(load_corpus(folder).vocabulary) == 5
    assert "at least 3" in fails(folder, max_vocabulary=2)
    assert "published vocabulary" in fails("ptb", max_vocabulary=100)
    assert "published vocabulary" in fails("synthetic", max_vocabulary=100)


def test_default_vocabulary_is_bounded(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "OWN_VOCABULARY", 4)
    assert len(load_corpus(str(write_folder(alone / "mine"))).vocabulary) == 4


# ----------------------------------------------------------------------------------------------------------- errors


def test_unknown_name(alone: Path) -> None:
    message = fails("ptbb")
    assert "ptbb" in message and "wikitext-2" in message and "train.txt" in message


@pytest.mark.parametrize("content", [b"", b"\n\n\n"])
@pytest.mark.parametrize("split", SPLITS)
def test_empty_split(alone: Path, split: str, content: bytes) -> None:
    assert f"mine/{split}.txt: holds no word" in fails(str(write_folder(alone / "mine", {**TEXT, split: content})))


def split_of(alone: Path, text: str) -> List[str]:
    """The splits of a text in one file, as they can be read."""
    (alone / "mine.txt").write_text(text)
    corpus = load_corpus("mine.txt")
    return [" ".join(split) for split in words(corpus).values()]


def test_a_text_of_one_line_is_split_by_words(alone: Path) -> None:
    expected = ["a a a a a a a a", "a", "a <eos>"]
    assert split_of(alone, " ".join("a" * 10)) == expected
    assert split_of(alone, " ".join("a" * 10) + "\n" * 200) == expected
    nine = ["a a <eos> a a a a a", "a", "a <eos>"]  # of two lines none is left for each split
    assert split_of(alone, "a a\na a a a a a a\n") == nine
    *ten, last = split_of(alone, " ".join("a" * 9) + "\n" * 200 + "a\n")  # blank lines are no words to count
    assert (ten, last.count("<eos>")) == (["a a a a a a a a", "a" + " <eos>" * 200], 1)


def test_blank_lines_at_the_end_of_a_text_count_as_nothing(alone: Path) -> None:
    lines = "".join(f"a {n}\n\n" for n in range(10))
    assert split_of(alone, lines + "\n \n" * 200) == split_of(alone, lines)
    assert split_of(alone, lines)[0].count("<eos>") == 15, "but in between they do"


@pytest.mark.parametrize("text", ["one line\n", "a b c d e", "a\n" + "\n" * 50 + "b"])
def test_file_too_short_to_split(alone: Path, text: str) -> None:
    (alone / "short.txt").write_text(text)
    assert "short.txt: too short to be split 80/10/10" in fails("short.txt")


@pytest.mark.parametrize("space", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
def test_only_new_lines_and_carriage_returns_end_lines(alone: Path, space: str) -> None:
    train = f"dax{space}zorp{space}\r\ndax\rzorp\n".encode()
    corpus = load_corpus(str(write_folder(alone / "mine", {**TEXT, "train": train})))
    assert " ".join(words(corpus)["train"]) == "dax zorp <eos> dax <eos> zorp <eos>"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_a_text_in_another_unicode_encoding_is_refused(alone: Path, encoding: str) -> None:
    message = fails(str(write_folder(alone / "mine", {**TEXT, "valid": "dax wug\n".encode(encoding)})))
    assert "valid.txt: line 1 holds a zero byte, as UTF-16 does; expected UTF-8 text" in message


@pytest.mark.parametrize("name", ["/proc/kmsg", "/proc/self/mem", "/proc/self/status", "/proc/self/pagemap"])
def test_a_file_of_the_kernels_is_not_read(alone: Path, name: str) -> None:
    if not os.path.exists(name):
        pytest.skip(f"this system has no {name}")
    message = fails(name)
    assert message.startswith(f"{name}: holds no word") or "cannot be read" in message


def test_a_text_is_opened_once(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, itself = [], os.open

    def watched(path: Any, *rest: Any, **options: Any) -> int:
        opened.append(Path(path).name)
        return itself(path, *rest, **options)

    monkeypatch.setattr(os, "open", watched)
    assert words(load_corpus(str(write_folder(alone / "mine")))) == TOKENS
    assert [name for name in opened if name.endswith(".txt")] == ["train.txt", "valid.txt", "test.txt"]


def test_missing_split(alone: Path) -> None:
    folder = write_folder(alone / "mine")
    (folder / "test.txt").unlink()
    message = fails(str(folder))
    assert "test.txt" in message and "missing" in message


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("line", [1, 777, 40_000])
def test_invalid_utf8_is_found_in_its_line_however_far_into_the_file(alone: Path, line: int, end: bytes) -> None:
    text = b"\xef\xbb\xbf" + (b"some words" + end) * (line - 1) + b"bad \xff word" + (b"some words" + end) * 30_000
    (alone / "mine.txt").write_bytes(text)
    assert f"line {line} is not valid UTF-8" in fails("mine.txt")


WORDS = st.text("a\u00e9\U0001f600", min_size=1, max_size=3)
SPACES = st.text(" \t\n\r\v\x85\u2028", min_size=1, max_size=3)


@given(st.lists(WORDS | SPACES), st.integers(3, 9), st.booleans())
def test_a_text_reads_the_same_in_pieces_of_any_size(parts: List[str], size: int, marked: bool) -> None:
    parts = [part + " " if part.strip() else part for part in parts]
    text = "".join(parts)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = lines if lines[-1] else lines[:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PIECE", size)
        numbers: Any = defaultdict(lambda: len(numbers))
        content = text.encode("utf-8-sig" if marked else "utf-8")
        found, ends = encoding._number_words(Text(Path("text"), content), numbers)
    types = list(numbers)
    assert [types[number] for number in found] == [word for line in lines for word in [*line.split(), END]]
    assert np.diff(ends, prepend=0).tolist() == [len(line.split()) + 1 for line in lines]


def test_a_word_without_end_is_refused_before_it_fills_the_memory(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before, length in ((0, 1), (1, 1), (100, 1), (encoding.PIECE // 2, 1), (0, 3 * encoding.PIECE)):
        train = b"." * (before - 1) + b" " + b"a" * (encoding.PIECE + length) + b" dax\n"
        folder = write_folder(alone / "mine", {**TEXT, "train": train})
        assert "train.txt: a word of more than 65,536 characters" in fails(str(folder))
    write_folder(alone / "mine", {**TEXT, "train": b"a" * encoding.PIECE + b" dax\n"})
    assert len(load_corpus(str(folder)).train) == 3


def test_a_text_that_does_not_fit_into_the_memory_is_refused(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(write_folder(alone / "mine"))
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "MEMORY", 1000)
        assert "mine/train.txt: more words than fit into this machine's memory" in fails(folder)
    assert words(load_corpus(folder)) == TOKENS


def test_unreadable_file(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(alone / "mine")
    (folder / "train.txt").chmod(0)
    if os.geteuid() == 0:  # root reads everything

        def refuse(path: str, flags: int, *mode: int) -> int:
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "open", refuse)
    message = fails(str(folder))
    assert "train.txt" in message and "Permission denied" in message and "readable" in message


# ----------------------------------------------------------------------------------- published corpora, search order


def test_search_order(fake_ptb: PublishedCorpus, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(root: str) -> Path:
        return write_folder(alone / root / "ptb", pattern=fake_ptb.file)

    def bad(root: str) -> None:
        (place(root) / "ptb.test.txt").write_bytes(b"not the file")

    place("data")
    assert words(load_corpus("ptb")) == TOKENS
    monkeypatch.setenv("NOISIN_DATA", str(alone / "environment"))
    assert words(load_corpus("ptb")) == TOKENS, "a folder without the corpus is passed over"
    place("environment")
    bad("data")
    (alone / "empty").mkdir()
    assert words(load_corpus("ptb", data_dir=str(alone / "empty"))) == TOKENS, "the environment's comes before data/"
    bad("environment")
    assert "environment/ptb/ptb.test.txt" in fails("ptb"), "a folder with the corpus is not"
    place("argument")
    assert words(load_corpus("ptb", data_dir=str(alone / "argument"))) == TOKENS
    bad("argument")
    assert "argument/ptb/ptb.test.txt" in fails("ptb", data_dir=str(alone / "argument"))


def test_wrong_checksum_and_truncated_file(fake_ptb: PublishedCorpus, alone: Path) -> None:
    folder = write_folder(alone / "data" / "ptb", pattern=fake_ptb.file)
    path = folder / "ptb.train.txt"
    path.write_bytes(TEXT["train"].replace(b"blick", b"block"))
    message = fails("ptb")
    assert "data/ptb/ptb.train.txt" in message and "sha256" in message and "delete it" in message
    assert fake_ptb.sha256["train"][:16] in message
    path.write_bytes(TEXT["train"][:-1])
    message = fails("ptb")
    assert "truncated" in message and str(len(TEXT["train"])) in message
    path.unlink()
    path.mkdir()
    assert "directory" in fails("ptb")


def test_wikitext2_is_another_name_of_wikitext_2(alone: Path) -> None:
    assert fails("wikitext2", download=False).startswith("wikitext-2: no wiki.train.tokens")
    assert "published vocabulary" in fails("wikitext2", max_vocabulary=100)
    assert Config(corpus="wikitext2") == Config(corpus="wikitext-2")


def test_without_download(fake_ptb: PublishedCorpus, alone: Path) -> None:
    names = "ptb.train.txt, ptb.valid.txt, ptb.test.txt"
    assert f"no {names} in data/ptb, and not downloaded (--no-download)" in fails("ptb", download=False)
    assert list(alone.iterdir()) == []


def test_every_folder_that_was_looked_into_is_named(
    fake_ptb: PublishedCorpus, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOISIN_DATA", "/none")
    message = fails("ptb", data_dir="/usr")
    assert "in /usr/ptb or /none/ptb or data/ptb" in message and f"into {alone}/data/ptb" in message
    says = "--data-dir /nope: not a folder; name one that holds ptb/, or leave it out"
    assert fails("ptb", data_dir="/nope") == says


def test_incomplete_folder_of_the_users(fake_ptb: PublishedCorpus, alone: Path) -> None:
    folder = write_folder(alone / "mine" / "ptb", pattern=fake_ptb.file)
    (folder / "ptb.valid.txt").unlink()
    message = fails("ptb", data_dir=str(alone / "mine"))
    assert "mine/ptb/ptb.valid.txt" in message and "missing" in message


# --------------------------------------------------------------------------------------------------------- download


class Server:
    """A loopback server: what it answers for each path, and the requests it saw."""

    def __init__(self) -> None:
        self.answers: Dict[str, Tuple[int, bytes, int]] = {}  # status, body, bytes missing from its end
        self.requests: List[Tuple[str, str]] = []  # path and user agent
        self.before_answer: Callable[[], object] = lambda: None
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["User-Agent"]))
                status, body, cut = server.answers.get(self.path, (404, b"", 0))
                server.before_answer()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - cut])

            def log_message(self, *arguments: object) -> None:
                pass  # a line a request on stderr is what the base class writes

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def deliver(self, prefix: str, text: Dict[str, bytes] = TEXT, status: int = 200, cut: int = 0) -> Source:
        for split, content in text.items():
            self.answers[f"/{prefix}/{split}.txt"] = (status, content, cut)
        return Source(f"{self.url}/{prefix}/{{split}}.txt")

    def archive(self, name: str, content: bytes, member: str, delivered: Optional[bytes] = None) -> Source:
        """The archive is known by its content, and what is delivered may be something else."""
        self.answers[f"/{name}"] = (200, content if delivered is None else delivered, 0)
        return Source(f"{self.url}/{name}", member, f"sha1:{hashlib.sha1(content).hexdigest()}")


@pytest.fixture
def server(alone: Path) -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def offer(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> None:
    monkeypatch.setitem(PUBLISHED, "ptb", dataclasses.replace(PUBLISHED["ptb"], sources=sources))


def downloaded(alone: Path) -> Dict[str, bytes]:
    """All files under the current directory but locks, half-written ones too."""
    files = (path for path in alone.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(alone)): path.read_bytes() for path in files}


GOOD = {f"data/ptb/ptb.{split}.txt": content for split, content in TEXT.items()}


def test_download(fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.deliver("good"))
    assert words(load_corpus("ptb")) == TOKENS
    assert downloaded(alone) == GOOD
    assert all("noisin" in agent for _, agent in server.requests)
    load_corpus("ptb")
    assert len(server.requests) == 3, "what is there is not downloaded again"
    (alone / "data/ptb/ptb.valid.txt").unlink()
    load_corpus("ptb")
    assert server.requests[3:] == [("/good/valid.txt", published_corpora.USER_AGENT)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 404}, "HTTP status 404"),
        ({"status": 503}, "HTTP status 503"),
        ({"cut": 3}, "connection broken"),
        ({"text": {split: content[::-1] for split, content in TEXT.items()}}, "wrong checksum"),
    ],
)
def test_bad_candidate_and_fallback(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch, fault: dict, reason: str
) -> None:
    bad = server.deliver("bad", **fault)
    offer(monkeypatch, bad)
    message = fails("ptb")
    assert f"(127.0.0.1:{server.http.server_address[1]}: {reason})" in message
    assert "--data-dir" in message and "LDC" in message and len(message) < 600 + len(str(alone))
    assert downloaded(alone) == {}
    offer(monkeypatch, bad, server.deliver("good"))
    assert words(load_corpus("ptb")) == TOKENS
    assert downloaded(alone) == GOOD


def test_no_network_fails_at_once(fake_ptb: PublishedCorpus, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        offer(monkeypatch, *(Source(f"http://{host}/{i}") for i in range(3)))
        start = time.perf_counter()
        message = fails("ptb")
    assert time.perf_counter() - start < 5
    assert f"({host}, {host}, {host}: cannot be reached)" in message
    assert downloaded(alone) == {}


def test_silent_server(fake_ptb: PublishedCorpus, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_corpora, "TIMEOUT", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        offer(monkeypatch, Source(f"http://127.0.0.1:{silent.getsockname()[1]}/x"))
        assert "timed out" in fails("ptb")


def test_a_certificate_that_is_not_trusted_is_said_to_be(
    fake_ptb: PublishedCorpus, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, Source("https://mirror.example/x"))

    def refused(*_: Any, **__: Any) -> None:
        raise requests.exceptions.SSLError("certificate verify failed")

    monkeypatch.setattr(requests, "get", refused)
    assert "(mirror.example: certificate not trusted, name yours with REQUESTS_CA_BUNDLE)" in fails("ptb")


ARCHIVES = pytest.mark.parametrize(("pack", "name"), [(zipped, "a.zip"), (tarred, "a.tgz")])


@ARCHIVES
@pytest.mark.parametrize("before", ["in/", "./in/"])  # the original's names begin with a dot
def test_archive(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch, pack, name, before
) -> None:  # fmt: skip
    members = {"other.txt": b"other", **{f"{before}{split}.txt": content for split, content in TEXT.items()}}
    offer(monkeypatch, server.archive(name, pack(members), "in/{split}.txt"))
    assert words(load_corpus("ptb")) == TOKENS
    assert downloaded(alone) == GOOD


def hours_of_headers() -> bytes:
    """A tar archive whose header takes `tarfile` of older Pythons hours (CVE-2024-6232)."""
    header = tarfile.TarInfo("x").tobuf()
    kind = b"x"
    content = b"0" * 2**13
    extended = tarfile.TarInfo("pax")
    extended.type, extended.size = kind, len(content)
    return gzip.compress(extended.tobuf() + content + header + bytes(1024))


@ARCHIVES
@pytest.mark.parametrize("wrong", [b"", b"<html>moved</html>", hours_of_headers()], ids=["empty", "html", "headers"])
def test_another_archive_is_never_opened(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch, pack, name, wrong
) -> None:  # fmt: skip
    whole = pack({f"in/{split}.txt": content for split, content in TEXT.items()})

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("opened before it was checked")

    monkeypatch.setattr(tarfile.TarFile, "open", opened)
    monkeypatch.setattr(zipfile.ZipFile, "__init__", opened)
    # One that was put there by hand, or left by a process that was killed, is not looked at either.
    for place in (alone / "data" / "ptb" / name, alone / "data" / "ptb" / ".download" / "archive"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(wrong)
    offer(monkeypatch, server.archive(name, whole, "in/{split}.txt", wrong))
    assert "wrong checksum" in fails("ptb")
    assert downloaded(alone) == {f"data/ptb/{name}": wrong}


@ARCHIVES
def test_an_archive_of_another_text_is_refused(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch, pack, name
) -> None:  # fmt: skip
    whole = pack({f"in/{split}.txt": content * 9 for split, content in TEXT.items()})
    offer(monkeypatch, server.archive(name, whole, "in/{split}.txt"))
    assert "wrong checksum" in fails("ptb")
    assert downloaded(alone) == {}


def test_data_folder_cannot_be_written(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone / "data").write_bytes(b"in the way")
    offer(monkeypatch, server.deliver("good"))
    assert "data/ptb: cannot be written (Not a directory)" in fails("ptb")


def test_full_disk_while_downloading(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server.deliver("good"))
    with file_size_limit(len(TEXT["train"]) - 1):
        message = fails("ptb")
    assert "data/ptb: cannot be written (File too large)" in message
    assert downloaded(alone) == {}
    assert words(load_corpus("ptb")) == TOKENS
    assert downloaded(alone) == GOOD


def test_several_downloads_at_once_are_one(
    fake_ptb: PublishedCorpus, alone: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"in/{split}.txt": content for split, content in TEXT.items()}
    offer(monkeypatch, server.archive("a.tgz", tarred(members), "in/{split}.txt"))
    server.before_answer = lambda: time.sleep(1)  # the others come meanwhile
    folder = alone / "data" / "ptb"
    folder.mkdir(parents=True)
    (folder / f".ptb.test.txt.{32 * '0'}.tmp").write_bytes(b"of a process that was kil")
    (folder / ".download").mkdir()
    (folder / ".download" / "tmp0").write_bytes(b"of another")
    with ThreadPoolExecutor(4) as pool:
        for corpus in pool.map(load_corpus, ["ptb"] * 4):
            assert words(corpus) == TOKENS
    assert len(server.requests) == 1
    assert downloaded(alone) == GOOD


def test_who_downloads_is_told_to_those_who_wait_too_long(
    fake_ptb: PublishedCorpus, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch)
    monkeypatch.setattr(published_corpora, "PATIENCE", 0.2)
    with hold_folder(alone / "data" / "ptb"):
        assert f"data/ptb is in use by process {os.getpid()} on " in fails("ptb")


def test_interrupted_write_leaves_nothing(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(alone / "file", b"content")
    assert list(alone.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- batches

SIZES = st.tuples(st.integers(0, 200), st.integers(1, 9), st.integers(1, 9))


@given(SIZES)
def test_training_batches_rebuild_the_text(sizes: Tuple[int, int, int]) -> None:
    size, batch_size, unroll = sizes
    tokens = np.arange(size, dtype=np.int32)
    number = number_of_training_batches(tokens, batch_size, unroll)
    if number == 0:
        assert size < batch_size * unroll + 1
        with pytest.raises(UserError, match="too|takes"):
            training_batches(tokens, batch_size, unroll)
        return
    batches = list(training_batches(tokens, batch_size, unroll))
    assert len(batches) == number
    for array in (array for batch in batches for array in batch):
        assert array.shape == (unroll, batch_size) and array.dtype == np.int32
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*batches))
    # Every column is a run of the text, the columns follow each other, and little is dropped.
    length = (size - 1) // batch_size
    for column in range(batch_size):
        run = np.arange(column * length, column * length + number * unroll)
        assert np.array_equal(inputs[:, column], run)
        assert np.array_equal(targets[:, column], run + 1)
    assert size - 1 - length * batch_size < batch_size and length - number * unroll < unroll


def test_a_text_of_which_much_is_not_trained_on_is_said_to_be() -> None:
    notice = left_out_notice(np.zeros(2230, dtype=np.int32), 32, 35)
    assert "1,109 of the training split's 2,230 tokens (50%)" in notice and "--unroll" in notice and "\n" not in notice
    assert left_out_notice(np.zeros(2230, dtype=np.int32), 20, 37) == "", "9 are left out"
    assert left_out_notice(np.zeros(9, dtype=np.int32), 32, 35) == "", "training refuses it, and says why"


@given(SIZES)
def test_evaluation_batches_score_every_token_once(sizes: Tuple[int, int, int]) -> None:
    size, batch_size, unroll = sizes
    tokens = np.arange(1, size + 1, dtype=np.int32)
    if size == 0:
        with pytest.raises(UserError, match="no tokens"):
            evaluation_batches(tokens, 0, batch_size, unroll)
        return
    batches = list(evaluation_batches(tokens, 0, batch_size, unroll))
    for inputs, targets, weights in batches:
        assert inputs.shape == targets.shape == weights.shape == (unroll, batch_size)
        assert (inputs.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    inputs, targets, weights = (np.concatenate(arrays).T.ravel() for arrays in zip(*batches))
    assert set(weights) <= {0.0, 1.0}
    assert np.array_equal(targets[weights == 1], tokens), "each once, in the order of the text"
    assert np.array_equal(inputs[weights == 1], np.concatenate([[0], tokens[:-1]]))
    assert len(batches) == math.ceil(size / (batch_size * unroll))


@pytest.mark.parametrize(("batch_size", "unroll"), [(0, 1), (1, 0), (-1, 1)])
def test_batches_of_no_size(batch_size: int, unroll: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        training_batches(np.arange(9), batch_size, unroll)
    with pytest.raises(ValueError, match="at least 1"):
        evaluation_batches(np.arange(9), 0, batch_size, unroll)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(cut) == doctest.TestResults(failed=0, attempted=2)


# -------------------------------------------------------------------------------------------------- synthetic source


def test_synthetic_corpus() -> None:
    corpus = load_corpus("synthetic")
    # The text is part of what a published number depends on: raise synthetic.VERSION when it changes.
    assert (synthetic.VERSION, corpus.digest[:16]) == (1, "852bbf1e805e2cd1")
    assert load_corpus("synthetic").digest == corpus.digest
    assert corpus.vocabulary.idx_to_token == synthetic.source().types
    assert len(set(synthetic.source().types)) == len(corpus.vocabulary) == synthetic.TYPES
    eos = corpus.vocabulary["<eos>"]
    for split, size in synthetic.TOKENS.items():
        tokens = getattr(corpus, split)
        assert size <= len(tokens) < size + 200 and tokens[-1] == eos and tokens.dtype == np.int32
    assert "17.24" in table1([corpus])


def test_synthetic_stationary_distribution() -> None:
    source = synthetic.source()
    assert source.transition.min() > 0
    np.testing.assert_allclose(source.transition.sum(axis=1), 1)
    assert source.stationary.min() > 0 and math.isclose(source.stationary.sum(), 1)
    np.testing.assert_allclose(source.stationary @ source.transition, source.stationary, atol=1e-14)
    # An independent way to it: any row of a high power of the transition matrix.
    np.testing.assert_allclose(np.linalg.matrix_power(source.transition, 200)[7], source.stationary, atol=1e-12)


def test_synthetic_entropy_rate_by_monte_carlo(seed: int) -> None:
    source = synthetic.source()
    blocks = source.sample(200_000, np.random.RandomState(seed))[:200_000].reshape(200, 1000)
    # Means of long blocks are nearly independent; the bound of 4 standard errors fails once in 16,000 seeds.
    means = np.array([-source.log_probabilities(block)[1:].mean() for block in blocks])
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert error < 0.01
    assert abs(means.mean() - source.entropy_rate) < 4 * error
    frequencies = np.bincount(blocks.ravel(), minlength=synthetic.TYPES) / blocks.size
    assert np.abs(frequencies - source.stationary).sum() < 0.05


def test_synthetic_entropy_rate_of_known_chains() -> None:
    types = ["<unk>", "<eos>"]
    uniform = synthetic.MarkovSource(types, np.full((2, 2), 0.5))
    assert math.isclose(uniform.entropy_rate, math.log(2))
    flip, stay = 0.1, 0.7  # P(0 -> 1), P(1 -> 1): pi_1 = flip / (flip + 1 - stay) = 1/4
    chain = synthetic.MarkovSource(types, np.array([[1 - flip, flip], [1 - stay, stay]]))
    np.testing.assert_allclose(chain.stationary, [0.75, 0.25])

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert math.isclose(chain.entropy_rate, 0.75 * entropy(flip) + 0.25 * entropy(stay))
    np.testing.assert_allclose(chain.log_probabilities(np.array([1, 0, 0])), np.log([0.7, 0.3, 0.9]))


def test_synthetic_source_is_worth_learning() -> None:
    source = synthetic.source()
    unigram = math.exp(-(source.stationary * np.log(source.stationary)).sum())
    assert 15 < math.exp(source.entropy_rate) < 25 and unigram > 80
    # Zipf-like: a straight line of slope about -1 in the logarithms of rank and frequency.
    frequencies = np.sort(source.stationary)[:-101:-1]
    slope = np.polyfit(np.log(np.arange(1, 101)), np.log(frequencies), 1)[0]
    assert -1.2 < slope < -0.7
