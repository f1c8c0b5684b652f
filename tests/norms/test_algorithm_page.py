"""docs/algorithm.md names functions and switches that exist, and every switch."""

import importlib
import pkgutil
import re

import pytest

import un.norms
from tests.norms.helpers import ROOT

PAGE = (ROOT / "docs" / "algorithm.md").read_text()
MODULES = [importlib.import_module(entry.name) for entry in pkgutil.walk_packages(un.norms.__path__, "un.norms.")]
NAMES = sorted(set(re.findall(r"`([A-Za-z_][\w.]*)`", PAGE)))


def is_known(name: str) -> bool:
    """A name of a module of `un.norms`, of a class in it, a switch, or a method of UN."""
    owner, _, attribute = name.partition(".")
    places = [getattr(module, owner) for module in MODULES if hasattr(module, owner)]
    if attribute:
        return any(hasattr(place, attribute) for place in places)
    return bool(places) or hasattr(un.norms.UnifiedNorm, name) or name in un.norms.Switches.__dataclass_fields__


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name):
    assert is_known(name)


def test_the_check_itself_finds_what_it_should():
    assert len(NAMES) > 20
    assert not is_known("smooth_moments")
    assert not is_known("UnifiedNorm.smooth")


def test_every_switch_and_step_is_there():
    switches = {int(number) for number in re.findall(r"\bS(\d+)\b", PAGE)}
    assert switches == set(range(1, 21))
    steps = set(re.findall(r"\b([FB]\d+)\b", PAGE))
    assert steps == {f"F{n}" for n in range(1, 12)} | {f"B{n}" for n in range(1, 9)}
    assert not re.search(r"\.py:\d", PAGE), "line numbers go stale"
