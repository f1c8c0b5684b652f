"""No module of `un.norms` knows the ones that use it: imports, those for type checkers too, have no circles."""

import ast
from graphlib import TopologicalSorter

from tests.norms.helpers import ROOT

# What norms share, which must know no norm.
SHARED = {
    "base",
    "compiling",
    "constants",
    "derivatives",
    "filtration",
    "masking",
    "moments",
    "options",
    "passes",
    "recomputation",
    "schedule",
    "switches",
    "transaction",
    "updates",
    "window",
}


def read_arrows():
    """Each module with those it imports."""
    paths = [path for path in (ROOT / "un" / "norms").rglob("*.py") if path.stem != "__init__"]
    names = {path.stem for path in paths}
    arrows = {}
    for path in paths:
        imports = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        arrows[path.stem] = {module.rsplit(".", 1)[-1] for module in imports if module.startswith("un.norms")} & names
    return arrows


def test_imports_have_no_circles():
    order = list(TopologicalSorter(read_arrows()).static_order())  # raises for a circle
    assert order.index("unified") < order.index("unified_variants")


def test_what_norms_share_knows_no_norm():
    arrows = read_arrows()
    assert arrows.keys() >= SHARED
    assert {name: arrows[name] - SHARED for name in SHARED if arrows[name] - SHARED} == {}
