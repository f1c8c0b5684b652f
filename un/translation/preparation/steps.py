"""Steps of a preparation, each a folder that appears only when it is complete.

A step writes into `<name>.partial`, which is renamed at the end, together with a record of what made it. An interrupted
step starts again; a finished one is skipped unless its settings, or those of a step before it, have changed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD, CODES = "preparation.json", "bpe.codes"  # in a product, beside fairseq's files

Counts = dict[str, int]


class Steps:
    """Runs steps in order, each in a folder of `<output>.steps` and the last one in the output itself.

    Args:
        output: The folder to make.
        inputs: What everything depends on besides the steps' settings, e.g. checksums of archives.
    """

    def __init__(self, output: Path, inputs: dict[str, Any]) -> None:
        self.output, self.inputs = output, inputs
        self._fingerprint = compute_fingerprint("", "inputs", inputs)

    def run(self, name: str, settings: dict[str, Any], action: Callable[[Path], Counts]) -> Path:
        """Runs one step, unless it is finished, and returns its folder.

        Args:
            name: Name of the folder.
            settings: Everything that decides the result; kept in the record.
            action: Writes into the folder it is given and returns what it counted.
        """
        return self._run(self.output.with_name(f"{self.output.name}.steps") / name, settings, action)

    def finish(self, settings: dict[str, Any], action: Callable[[Path], Counts]) -> Path:
        """Runs the last step, which makes the output; arguments as of `run`.

        Raises:
            ValueError: The output exists and is not the product of an earlier preparation.
        """
        if self.output.exists() and any(self.output.iterdir()) and not (self.output / RECORD).is_file():
            raise ValueError(f"{self.output} exists and holds no {RECORD}; name another folder with --output")
        return self._run(self.output, settings, action)

    def _run(self, folder: Path, settings: dict[str, Any], action: Callable[[Path], Counts]) -> Path:
        self._fingerprint = compute_fingerprint(self._fingerprint, folder.name, settings)
        record = read_record(folder)
        if record.get("fingerprint") == self._fingerprint and has_files(folder, record):
            print(f"{folder.name}: already finished")
        else:
            print(f"{folder.name}: running")
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            counts = action(partial)
            record = {**settings, "counts": counts, "inputs": self.inputs, "files": describe_files(partial)}
            record["fingerprint"] = self._fingerprint
            (partial / RECORD).write_text(f"{json.dumps(record, indent=1, ensure_ascii=False)}\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        for name, count in record["counts"].items():
            print(f"  {name}: {count:,}")
        for name, file in record["files"].items():
            print(f"  {file['sha256']}  {name} ({file['bytes']:,} bytes)")
        return folder


def compute_fingerprint(before: str, name: str, settings: dict[str, Any]) -> str:
    """Returns a digest of a step, its settings and all steps before it."""
    return hashlib.sha256(json.dumps([before, name, settings], sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record of a folder; it is empty where there is none."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged (it holds a {type(record).__name__})")
    return record


def has_files(folder: Path, record: dict[str, Any]) -> bool:
    """Tells whether all files of the record are there in their sizes."""
    files = record.get("files", {})
    return all((folder / name).is_file() and (folder / name).stat().st_size == f["bytes"] for name, f in files.items())


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns size and checksum of every file below a folder, by relative name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": compute_checksum(p)} for p in paths}


def compute_checksum(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
