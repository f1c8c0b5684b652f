"""Who may import whom (design section 1), read from the source: lazy and type-checking imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The floors of the house, from the ground up: a room may import itself, the rooms of lower floors, and those in BESIDE.
FLOORS = (
    ("files", "tasks", "datasets", "weights"),
    ("command", "norms/core"),
    ("norms",),
    ("analysis", "reports"),
    ("surgery", "folding", "retrofit"),
    ("vision", "translation"),
    ("training/callbacks",),
    ("training",),
    ("sweeps",),
    ("finished",),
)
BESIDE = {"folding": {"surgery"}, "retrofit": {"surgery", "folding"}}  # of the same floor
APART = {"vision", "translation"}  # tasks, which the rooms above reach by `_target_` only
TORCH_AND = {
    "norms/core": set(),
    "norms": {"norms/core"},
    "surgery": {"norms/core", "norms"},
    "folding": {"norms/core", "norms", "surgery", "files", "weights"},
    "retrofit": {"norms/core", "norms", "surgery", "folding"},
}  # rooms that import torch and these rooms alone
TORCH = {"torch", "torchvision", "torchmetrics", "lightning", "timm", "fairseq"}
WITHOUT_TORCH = {"reports", "command", "files"}
ENTRY_POINTS = ("train.py", "eval.py")


def list_sources(root: Path) -> Iterator[Path]:
    yield from sorted((root / "un").rglob("*.py"))


def read_imports(path: Path, root: Path) -> set[str]:
    """Absolute dotted names of everything a file imports; `from a import b` gives a.b."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, *(node.module.split(".") if node.module else [])]
            names.update(".".join([*module, alias.name]) for alias in node.names)
    return names


def name_room(parts: Sequence[str]) -> str | None:
    """The room that a module of `un` is in, from its name without `un`; None for `un` itself."""
    pair = "/".join(parts[:2])
    rooms = {room for floor in FLOORS for room in floor}
    return pair if pair in rooms else (parts[0] if parts else None)


def list_allowed(room: str) -> set[str]:
    """The rooms that a room may import."""
    if room in TORCH_AND:
        return TORCH_AND[room] | {room}
    place = next(index for index, floor in enumerate(FLOORS) if room in floor)
    below = {lower for floor in FLOORS[:place] for lower in floor}
    return (below if room in APART else below - APART) | {room} | BESIDE.get(room, set())


def list_violations(root: Path) -> list[str]:
    violations = []
    rooms = {room for floor in FLOORS for room in floor}
    for path in list_sources(root):
        where = path.relative_to(root)
        parts = path.relative_to(root / "un").with_suffix("").parts
        room = None if parts == ("__init__",) else name_room(parts)
        if room is not None and room not in rooms:
            violations.append(f"{where}: {room} is not a room of un that design section 1 knows")
            continue
        allowed = list_allowed(room) if room else set()
        for name in sorted(read_imports(path, root)):
            top, *rest = name.split(".")
            outside = top != "un" and top not in sys.stdlib_module_names
            if top == "un" and rest and name_room(rest) not in allowed:
                violations.append(f"{where}: {room or 'un'} must not import {name}")
            if outside and ((room in TORCH_AND and top != "torch") or (room in WITHOUT_TORCH and top in TORCH)):
                violations.append(f"{where}: {room} must not import {top}")
    return violations


def test_imports_point_one_way():
    assert list(list_sources(ROOT)), "no sources found"
    assert list_violations(ROOT) == []


def test_imports_have_no_circles():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in list_sources(ROOT)}
    arrows = {}
    for module, path in modules.items():
        names = {prefix for name in read_imports(path, ROOT) for prefix in (name, name.rpartition(".")[0])}
        arrows[module] = names & modules.keys()
    order = list(TopologicalSorter(arrows).static_order())  # raises for a circle
    assert order.index("un.norms.unified") < order.index("un.norms.unified_variants")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_import_no_task(name):
    rooms = {name_room(name.split(".")[1:]) for name in read_imports(ROOT / name, ROOT) if name.split(".")[0] == "un"}
    assert rooms <= {"command", "training", "sweeps", "finished"}


@pytest.mark.parametrize(
    ("path", "source", "violation"),
    [
        ("norms/unified.py", "import torch, math\nfrom torch import nn\nfrom un.norms.core.base import Norm", None),
        ("norms/unified.py", "from .core.base import Norm", None),
        ("norms/unified.py", "import timm", "un/norms/unified.py: norms must not import timm"),
        ("norms/unified.py", "from ..surgery import is_norm", "must not import un.surgery.is_norm"),
        ("norms/core/base.py", "from un.norms import BatchNorm", "norms/core must not import un.norms.BatchNorm"),
        ("surgery/layout.py", "from un import norms", None),
        ("surgery/layout.py", "def f():\n    import un.vision.models", "surgery must not import un.vision.models"),
        ("folding/verify.py", "import numpy", "folding must not import numpy"),
        ("folding/verify.py", "from un.surgery import is_norm", None),
        ("analysis/recorder.py", "from un.surgery import is_norm", "analysis must not import un.surgery.is_norm"),
        ("vision/data.py", "import timm\nfrom un.vision import models", None),
        ("vision/data.py", "from un import translation", "vision must not import un.translation"),
        ("vision/data.py", "from un.datasets import BatchLoader", None),
        ("datasets.py", "from un.vision.batches import Batch", "datasets must not import un.vision.batches"),
        ("vision/data.py", "import un.training", "vision must not import un.training"),
        ("reports/result.py", "import pandas, json", None),
        ("reports/result.py", "from lightning import pytorch", "reports must not import lightning"),
        ("command/cli.py", "import torch", "command must not import torch"),
        ("training/train.py", "import un.surgery\nfrom un.training.callbacks.progress import ProgressBar", None),
        ("training/callbacks/progress.py", "from un.training import train", "must not import un.training.train"),
        ("training/assembly.py", "from un.vision import models", "training must not import un.vision.models"),
        ("helpers.py", "", "helpers is not a room of un"),
        ("__init__.py", "from un.norms import Norm", "un must not import un.norms.Norm"),
    ],
)
def test_the_check_itself_finds_what_it_should(tmp_path, path, source, violation):
    file = tmp_path / "un" / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    violations = list_violations(tmp_path)
    assert len(violations) == (violation is not None)
    assert violation is None or violation in violations[0]
