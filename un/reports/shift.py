"""Tests of a run on other data than its own, `shift.json` of its folder: shift -> metrics."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic.dataclasses import dataclass

from un.command.errors import CONFIG_FOLDER
from un.reports.result import write_json
from un.reports.validation import STRICT, parse

FILE = "shift.json"
EXPLODED = 50.0  # nats, ours: a guess among 50,000 words costs 11


@dataclass(frozen=True, config=STRICT)
class Losses:
    """Cross-entropy of the test examples one by one, in nats, of a translation per target token.

    One that explodes dominates the mean, but not the median. None where the number is not finite.
    """

    mean: float | None
    median: float | None
    largest: float | None
    examples: int
    exploded: int  # examples with a loss over `EXPLODED`, or none that is finite
    not_finite: int  # of them


@dataclass(frozen=True, config=STRICT)
class ShiftResult:
    """A test under one shift.

    Attributes:
        metrics: as in `result.json`.
        losses: of the examples.
        data: what the shift changed in the data of the run.
        changes: what else was asked for and makes other metrics, dotted key -> value.
        folded: whether the norms were folded first.
    """

    metrics: dict[str, float | None]
    losses: Losses
    data: dict[str, Any]
    changes: dict[str, Any]
    folded: bool

    def is_standard(self, name: str) -> bool:
        """Tells whether the shift is as its config has it, wherever its data lie, and all else as in the run."""
        file = CONFIG_FOLDER / "shift" / f"{name}.yaml"
        if self.changes or not file.is_file():
            return False
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        described, tested = content.get(name, {}).get("data", {}), dict(self.data)
        if described.get("path") == "???":
            described = described | {"path": tested.get("path")}
        return bool(described == tested)


@functools.cache
def list_shifts() -> list[str]:
    """Returns the names of all single shifts; files that only collect others are none."""
    files = sorted((CONFIG_FOLDER / "shift").glob("*.yaml"))
    return [file.stem for file in files if file.stem in OmegaConf.load(file)]


def read_shifts(path: Path) -> dict[str, ShiftResult]:
    """Reads what a run was tested under; nothing where there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        entries = {str(name): json.dumps(entry) for name, entry in content.items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return {name: parse(ShiftResult, text, f"{path}: {name}") for name, text in entries.items()}


def add_shifts(results: Mapping[str, ShiftResult], path: Path) -> None:
    """Writes tests beside those that are there; one under the same shift is replaced."""
    known = {**read_shifts(path), **results}
    write_json({name: asdict(result) for name, result in known.items()}, path)
