"""The cache of encoded corpora, by content."""

from __future__ import annotations

import io
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from noisin.data.encoding import END, UNKNOWN, encode
from noisin.data.published import SPLITS, Text
from noisin.system.files import hold_folder, parse_json, read_regular, write_whole

PATIENCE = 600.0  # seconds to wait for another process that encodes a corpus
CACHE_FORMAT = 2  # raise it when the meaning of a cached file changes


def encoded(
    digest: str, texts: Mapping[str, Text], max_vocabulary: Optional[int]
) -> Tuple[List[str], Dict[str, np.ndarray]]:
    """Return the types and the splits of these texts, from the cache if the same contents were encoded before."""
    cached = _cache_folder() / f"{digest}-{max_vocabulary or 'all'}-v{CACHE_FORMAT}.npz"
    return _read_cache(cached) or _make_cache(cached, texts, max_vocabulary)


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
    path: Path, texts: Mapping[str, Text], max_vocabulary: Optional[int]
) -> Tuple[List[str], Dict[str, np.ndarray]]:
    """Encode a corpus, one process at a time, and cache it; or read what a process has cached that was waited for."""
    try:
        lock: ContextManager[Any] = hold_folder(path.parent, PATIENCE)
    except OSError:
        lock = nullcontext()  # the cache only saves time: a folder that cannot be written is no reason to stop
    with lock:
        stored = _read_cache(path)
        if stored is None:
            stored = encode(texts, max_vocabulary)
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
        write_whole(path, buffer.getbuffer())
    except OSError:
        pass  # the next time it is encoded again
