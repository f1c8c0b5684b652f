"""Fixtures that several of the norm tests share."""

import pytest
import torch

from tests.norms.helpers import BUILDERS, C


@pytest.fixture
def double():
    """Float64 as the default type."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=BUILDERS)
def name(request):
    """The name of a norm, of each in turn."""
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def norm(name):
    return BUILDERS[name](C)
