"""docs/algorithm.md names functions and switches that exist, and every switch and step."""

import importlib
import pkgutil
import re

import un.norms
from tests.norms.helpers import ROOT

PAGE = (ROOT / "docs" / "algorithm.md").read_text()
MODULES = [importlib.import_module(entry.name) for entry in pkgutil.walk_packages(un.norms.__path__, "un.norms.")]


def is_known(name: str) -> bool:
    """Tells whether it is a name of a module of `un.norms`, of a class in it, a switch, or a method of UN."""
    owner, _, attribute = name.partition(".")
    places = [getattr(module, owner) for module in MODULES if hasattr(module, owner)]
    if attribute:
        return any(hasattr(place, attribute) for place in places)
    return bool(places) or hasattr(un.norms.UnifiedNorm, name) or name in un.norms.Switches.__dataclass_fields__


def test_every_name_exists():
    names = set(re.findall(r"`([A-Za-z_][\w.]*)`", PAGE))
    assert len(names) > 20
    assert [name for name in names if not is_known(name)] == []
    assert not is_known("smooth_moments")
    assert not is_known("UnifiedNorm.smooth")


def test_every_switch_and_step_is_there():
    assert {int(number) for number in re.findall(r"\bS(\d+)\b", PAGE)} == set(range(1, 21))
    steps = set(re.findall(r"\b([FB]\d+)\b", PAGE))
    assert steps == {f"F{n}" for n in range(1, 12)} | {f"B{n}" for n in range(1, 9)}
    assert not re.search(r"\.py:\d", PAGE), "line numbers go stale"
