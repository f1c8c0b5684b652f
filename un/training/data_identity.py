"""Which data a run is of: what names its folder, and the fingerprint that the same run must find again.

Nothing here reads what is inside the files, or imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER
from un.files import replace_file
from un.reports.validation import parse

# Choices of `data` whose `data.path` says only where that set lies; for any other choice it says which data these are.
LOCATED = ("cifar10", "cifar100", "imagenet", "multi30k", "tatoeba", "iwslt14_de_en", "wmt14_en_de")
DIGEST_LENGTH = 8  # of a path in a folder's name
LEFT_BY_FILE_MANAGERS = ("Thumbs.db", "desktop.ini")  # hidden files, too, are none of the data


def name_data(choice: str, path: Any) -> str:
    """Returns what tells this data set of the user's own from others in a folder's name, e.g. "photos-1f0c9a42".

    That is the base name and a digest of the whole path, the same for every spelling of it. It is empty where the path
    does not say which data these are, and null is for generated data.
    """
    if choice in LOCATED or path == _read_default(choice):
        return ""
    if path is None:
        return "null"
    whole = resolve_path(str(path))
    digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:DIGEST_LENGTH]
    base = re.sub(r"[^\w.-]+", "_", whole.rpartition("/")[2]).strip("_")
    return f"{base or 'data'}-{digest}"


def resolve_path(path: str) -> str:
    """Returns one spelling of a folder: absolute, without links; a hub id stays as it is."""
    place = os.path.expanduser(path)
    is_place = os.path.exists(place) or path.startswith(("/", "~", "."))
    return os.path.realpath(place) if is_place else path.rstrip("/")


@dataclass(frozen=True)
class Fingerprint:
    """Names and sizes of the files in a folder; of data that lie in no folder, their name.

    Attributes:
        path: resolved; null for generated data.
        files: number.
        size: bytes of all together.
        digest: of every file's name below the folder and its size, wherever the folder lies; of `path` without one.
    """

    path: str | None
    files: int
    size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.path} ({self.files} files, {self.size} bytes)" if self.files else str(self.path)


def take_fingerprint(path: Any, runs: Path | None = None) -> Fingerprint:
    """Lists the files below a folder, links followed; not those of runs, whose folder may be among the data's."""
    whole = None if path is None else resolve_path(str(path))
    sizes = sorted(_list_sizes(whole, runs)) if whole is not None and os.path.isdir(whole) else []
    lines = [f"{size} {name}" for name, size in sizes] or [str(whole)]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return Fingerprint(whole, len(sizes), sum(size for _, size in sizes), digest)


def write_fingerprint(file: Path, fingerprint: Fingerprint) -> None:
    with replace_file(file) as opened:
        json.dump(asdict(fingerprint), opened)


def read_fingerprint(file: Path) -> Fingerprint:
    return parse(Fingerprint, file.read_text(encoding="utf-8"), str(file))


def _list_sizes(root: str, runs: Path | None) -> Iterator[tuple[str, int]]:
    """Yields name and size of every file that may belong to the data; a folder which several links lead to, once."""
    entered = {os.path.realpath(runs)} - {root} if runs is not None else set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = os.path.realpath(folder)
        if place in entered:
            subfolders.clear()
            continue
        entered.add(place)
        for name in names:
            if not name.startswith(".") and name not in LEFT_BY_FILE_MANAGERS:
                path = os.path.join(folder, name)
                size = os.path.getsize(path) if os.path.exists(path) else 0  # a link may lead nowhere
                yield os.path.relpath(path, root), size


def _read_default(choice: str) -> str | None:
    """Returns the path that the choice's file names, e.g. of an embedded set; "???" where that is left to the user."""
    file = CONFIG_FOLDER / "data" / f"{choice}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    path = content.get("path") if isinstance(content, dict) else None
    return None if path is None else str(path)
