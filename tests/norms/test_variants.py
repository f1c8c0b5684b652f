"""Plain UN and its variant with switches: which of them is built."""

import copy
import pickle
from dataclasses import asdict
from typing import get_args, get_type_hints

import pytest

from tests.norms.helpers import C
from un.norms import Switches, UnifiedNorm, UnifiedNormVariant

DEFAULTS = asdict(Switches())
HINTS = get_type_hints(Switches)
FREE = {"compensation_limits": None, "compensation_start": 7, "threshold_factor": 2.0}


def change(name):
    """A value away from the default of a switch: another word, the other flag, or what `FREE` has."""
    if name in FREE:
        return FREE[name]
    return not DEFAULTS[name] if HINTS[name] is bool else get_args(HINTS[name])[1]


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_switch_away_from_its_default_makes_a_variant(name):
    assert type(UnifiedNorm(C, **{name: DEFAULTS[name]})) is UnifiedNorm
    norm = UnifiedNorm(C, window=2, **{name: change(name)})
    assert type(norm) is UnifiedNormVariant
    assert isinstance(norm, UnifiedNorm)
    assert norm.window == (2, 2)
    assert getattr(norm.switches, name) == change(name)


@pytest.mark.parametrize("options", [{}, {"centering": "window"}])
def test_copies_are_of_the_same_class(options):
    norm = UnifiedNorm(C, **options)
    for twin in (copy.deepcopy(norm), copy.copy(norm), pickle.loads(pickle.dumps(norm))):
        assert type(twin) is type(norm)
        assert twin.state_dict().keys() == norm.state_dict().keys()


def test_a_subclass_has_switches_if_it_derives_from_the_variant():
    class Plain(UnifiedNorm):
        pass

    class Switched(UnifiedNormVariant):
        pass

    assert type(Plain(C)) is Plain
    assert type(Switched(C, centering="batch")) is Switched
    with pytest.raises(ValueError, match="Plain must derive from UnifiedNormVariant to have its options"):
        Plain(C, centering="batch")
