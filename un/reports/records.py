"""Records: results of runs that are kept without their run folders, so that tables can be rendered again from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from un.reports.result import write_json
from un.reports.runs import EVALUATION, Run
from un.reports.shift import FILE

BESIDE = (FILE, EVALUATION)  # what tables show of a run that is not in its result, where it was measured
# An absolute path, or one from home, as a text or as the value of an override; its last part is not matched.
PLACE = re.compile(r"""(?:(?<=^)|(?<==))(["']?)(?:~|(?=/))[^"']*/(?=[^/"'])""")


def keep_records(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Writes `<experiment>/<setting>/seed=<n>/result.json` below a folder for every run and returns their paths.

    A record is the run's result, but it does not say where things lay on the machine: of an absolute path only the last
    part is kept, e.g. data.path=multi30k.
    """
    paths = []
    for run in runs:
        path = folder / run.result.experiment / run.setting / f"seed={run.result.seed}" / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(_hide_places(asdict(run.result)), path)
        for measured in (run.folder / name for name in BESIDE):
            if measured.is_file():
                write_json(_hide_places(json.loads(measured.read_bytes())), path.with_name(measured.name))
        paths.append(path)
    return paths


def _hide_places(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _hide_places(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_hide_places(value) for value in node]
    return PLACE.sub(r"\1", node) if isinstance(node, str) else node
