"""Steps of a preparation, each a folder that appears only when it is complete.

A step writes into `<name>.partial`, which is renamed at the end together with a record of what made it. A step that was
killed leaves only the partial folder and is done again; a finished one is skipped unless its settings, or those of a
step before it, have changed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = "preparation.json"
BLOCK = 1 << 20  # bytes read at once

Counts = dict[str, int]


class Steps:
    """Runs steps in order inside a folder.

    Args:
        folder: holds one folder per step; made when the first step runs.
        inputs: what everything depends on besides the steps' settings, e.g. checksums of archives.
        report: receives one line per step and per file.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any], report: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.report = report
        self._fingerprint = fingerprint("", "inputs", inputs)
        self._inputs = inputs

    def run(self, name: str, settings: dict[str, Any], action: Callable[[Path], Counts]) -> Path:
        """Runs one step, unless it is finished.

        Args:
            name: folder name of the step.
            settings: everything that decides its result; kept in its record.
            action: writes into the folder it is given and returns what it counted.

        Returns:
            The step's folder.
        """
        return self._run(name, self.folder / name, settings, action)

    def finish(self, output: Path, settings: dict[str, Any], action: Callable[[Path], Counts]) -> Path:
        """Runs the last step, whose folder is the product; its record lists the checksum of every file.

        Raises:
            ValueError: the folder exists and is not the product of an earlier preparation.
        """
        if output.exists() and any(output.iterdir()) and not (output / RECORD).is_file():
            raise ValueError(f"{output} exists and holds no {RECORD}; name another folder with --output")
        return self._run("product", output, settings, action)

    def _run(self, name: str, folder: Path, settings: dict[str, Any], action: Callable[[Path], Counts]) -> Path:
        self._fingerprint = fingerprint(self._fingerprint, name, settings)
        record = read_record(folder)
        if record.get("fingerprint") == self._fingerprint and has_files(folder, record):
            self.report(f"{folder.name}: finished before")
            self._report_files(record)
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.report(f"{folder.name}: running")
        counts = action(partial)
        record = {
            **settings,
            "counts": counts,
            "inputs": self._inputs,
            "files": describe_files(partial),
            "fingerprint": self._fingerprint,
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        self._report_files(record)
        return folder

    def _report_files(self, record: dict[str, Any]) -> None:
        for name, count in record["counts"].items():
            self.report(f"  {name}: {count:,}")
        for name, file in record["files"].items():
            self.report(f"  {file['sha256']}  {name} ({file['bytes']:,} bytes)")


def fingerprint(before: str, name: str, settings: dict[str, Any]) -> str:
    """Returns a digest of a step, its settings and all steps before it."""
    return hashlib.sha256(json.dumps([before, name, settings], sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Returns a finished step's record, empty if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def has_files(folder: Path, record: dict[str, Any]) -> bool:
    """Tells whether all files of the record are there and have its sizes."""
    files = record.get("files", {})
    return all((folder / name).is_file() and (folder / name).stat().st_size == f["bytes"] for name, f in files.items())


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns size and checksum of every file below a folder, by relative name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": compute_checksum(p)} for p in paths}


def compute_checksum(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
