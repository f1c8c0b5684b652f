"""Archives: found, downloaded, and the members wanted taken out."""

import gzip
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from huggingface_hub import hf_hub_download

from un.translation.preparation.steps import Counts


def download(url: str, path: Path) -> Path:
    """Downloads a file unless it is there already; an interrupted download starts again."""
    if path.is_file():
        print(f"{path}: already downloaded")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    print(f"{path}: downloading {url}")
    try:
        urllib.request.urlretrieve(url, partial)
    except OSError as error:
        raise ValueError(
            f"cannot download {url} ({error}); download it by other means and name it on the command line"
        ) from error
    return partial.rename(path)


def fetch_from_hub(repository: str, name: str) -> Path:
    """Downloads one file of a data set repository of the Hugging Face hub, through its cache."""
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} of {repository} cannot be downloaded from the hub ({reason})") from error


def extract(archives: list[Path], names: list[str], folder: Path, optional: tuple[str, ...] = ()) -> Counts:
    """Takes files out of tar or zip archives; only base names count, so that no member can leave the folder.

    Args:
        archives: Searched in this order; the first member with a name is taken.
        names: Base names that must be found.
        folder: Receives the files under their base names.
        optional: Base names that may be missing.

    Raises:
        ValueError: An archive is missing or unreadable, or no archive holds one of the names.
    """
    missing = {*names, *optional}
    for archive in archives:
        try:
            for name, file in iterate_members(archive):
                if name in missing:
                    with (folder / name).open("wb") as target:
                        shutil.copyfileobj(file, target)
                    missing.remove(name)
                if not missing:
                    break
        except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} cannot be read as a tar or zip archive ({error})") from error
    missing -= set(optional)
    if missing:
        where = ", ".join(str(archive) for archive in archives)
        raise ValueError(f"no {', '.join(sorted(missing))} in {where}")
    return {"files": len(list(folder.iterdir()))}


def iterate_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields base name and content of every regular file of an archive."""
    if not archive.is_file():
        raise ValueError(f"no archive {archive}")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if not entry.is_dir():
                    yield PurePosixPath(entry.filename).name, packed.open(entry)
        return
    with tarfile.open(archive, "r|*") as stream:
        for member in stream:
            content = stream.extractfile(member) if member.isfile() else None
            if content is not None:
                yield PurePosixPath(member.name).name, content
