"""Who may import whom (design section 1), read from the source: lazy and type-checking imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# part of `un` -> the other parts it may import. Tasks are reached by `_target_` only, so runtime does not list them.
ALLOWED_PARTS = {
    "norms": set(),
    "files": set(),  # writing them
    "loading": set(),  # what loading of data has in common, so that the tasks need not import each other
    "inference": set(),  # what folding and exporting ask of a task
    "surgery": {"norms"},
    "folding": {"norms"},
    "vision": {"norms", "loading", "inference"},
    "translation": {
        "files",
        "norms",
        "loading",
        "inference",
        "surgery",
    },  # surgery for fairseq's own commands, which know no runtime
    "analysis": {"norms", "files"},
    "reports": {"files"},
    "runtime": {"files", "norms", "inference", "surgery", "folding", "analysis", "reports"},
}
ONLY_TORCH = ("norms", "surgery", "folding")
WITHOUT_TORCH = {"reports": {"torch", "torchvision", "torchmetrics", "lightning", "timm", "fairseq"}}
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


def name_part(path: Path, root: Path) -> str | None:
    """The part of `un` a file belongs to: its folder or, for a single file, its stem; None for `un/__init__.py`."""
    part = path.relative_to(root / "un").with_suffix("").parts[0]
    return None if part == "__init__" else part


def list_violations(root: Path) -> list[str]:
    violations = []
    for path in list_sources(root):
        part, where = name_part(path, root), path.relative_to(root)
        if part is not None and part not in ALLOWED_PARTS:
            violations.append(f"{where}: {part} is not a part of un that design section 1 knows")
            continue
        allowed = ALLOWED_PARTS[part] | {part} if part else set()
        for name in sorted(read_imports(path, root)):
            top, *rest = name.split(".")
            outside = top != "un" and top not in sys.stdlib_module_names
            if top == "un" and rest and rest[0] not in allowed:
                violations.append(f"{where}: {part or 'un'} must not import {name}")
            if outside and ((part in ONLY_TORCH and top != "torch") or top in WITHOUT_TORCH.get(part or "", ())):
                violations.append(f"{where}: {part} must not import {top}")
    return violations


def test_imports_point_one_way():
    assert list(list_sources(ROOT)), "no sources found"
    assert list_violations(ROOT) == []


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_import_only_the_runtime(name):
    parts = {".".join(name.split(".")[:2]) for name in read_imports(ROOT / name, ROOT) if name.split(".")[0] == "un"}
    assert parts == {"un.runtime"}


@pytest.mark.parametrize(
    ("path", "source", "violation"),
    [
        ("norms/unified.py", "import torch, math\nfrom torch import nn\nfrom un.norms.base import Norm", None),
        ("norms/unified.py", "from .base import Norm", None),
        ("norms/unified.py", "import timm", "un/norms/unified.py: norms must not import timm"),
        ("norms/unified.py", "from ..surgery import is_norm", "must not import un.surgery.is_norm"),
        ("surgery.py", "from un import norms", None),
        (
            "surgery.py",
            "def f():\n    import un.vision.models",
            "un/surgery.py: surgery must not import un.vision.models",
        ),
        ("folding/verify.py", "import numpy", "folding must not import numpy"),
        ("vision/data.py", "import timm\nfrom un.vision import models", None),
        ("vision/data.py", "from un import translation", "vision must not import un.translation"),
        ("vision/data.py", "from un.loading import BatchLoader", None),
        ("loading.py", "from un.vision.batches import Batch", "loading must not import un.vision.batches"),
        ("vision/data.py", "import un.runtime", "vision must not import un.runtime"),
        ("reports/result.py", "import pandas, json", None),
        ("reports/result.py", "from lightning import pytorch", "reports must not import lightning"),
        ("runtime/assembly.py", "import un.surgery\nfrom un.reports.result import write_result", None),
        ("runtime/assembly.py", "from un.vision import models", "runtime must not import un.vision.models"),
        ("helpers.py", "", "helpers is not a part of un"),
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
