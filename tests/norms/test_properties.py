"""Property-based tests: random shapes, masks and orders of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.norms.helpers import BUILDERS, STATISTICAL, step

PROFILE = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9))


def draw(seed, batch, tokens, channels, padding):
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(batch, tokens, channels, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(batch, tokens, generator=generator) < padding
    return x, grad, mask


@pytest.mark.parametrize("name", BUILDERS)
@PROFILE
@given(size=sizes, seed=st.integers(0, 10**6), padding=st.sampled_from([0.0, 0.3, 0.9]))
def test_shapes_and_finiteness(name, size, seed, padding):
    norm = BUILDERS[name](size[-1], dtype=torch.float64)
    for call in range(3):
        x, grad, mask = draw(seed + call, *size, padding)
        y, x_grad, *_ = step(norm, x, grad, mask)
        assert y.shape == x_grad.shape == x.shape
        assert y.isfinite().all()
        assert x_grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


@pytest.mark.parametrize("name", BUILDERS)
@PROFILE
@given(size=sizes, seed=st.integers(0, 10**6), masked=st.booleans())
def test_order_of_tokens_does_not_matter(name, size, seed, masked):
    plain, shuffled = (BUILDERS[name](size[-1], dtype=torch.float64) for _ in range(2))
    for call in range(3):
        x, grad, mask = draw(seed + call, *size, 0.3 if masked else 0.0)
        order = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(seed))
        pick = lambda t, o=order: t.flatten(0, 1)[o].view(t.shape)  # noqa: E731
        a = step(plain, x, grad, mask)
        b = step(shuffled, pick(x), pick(grad), pick(mask))
        assert torch.allclose(pick(a[0]), b[0], rtol=1e-9, atol=1e-12)
        assert torch.allclose(pick(a[1]), b[1], rtol=1e-8, atol=1e-10)
    for key, value in plain.state_dict().items():
        assert torch.allclose(shuffled.state_dict()[key].double(), value.double(), rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("name", STATISTICAL)
@PROFILE
@given(size=sizes, seed=st.integers(0, 10**6))
def test_a_mask_without_padding_changes_nothing(name, size, seed):
    plain, masked = (BUILDERS[name](size[-1], dtype=torch.float64) for _ in range(2))
    for call in range(3):
        x, grad, mask = draw(seed + call, *size, 0.0)
        for a, b in zip(step(plain, x, grad), step(masked, x, grad, mask), strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", STATISTICAL)
@PROFILE
@given(size=sizes, seed=st.integers(0, 10**6), padding=st.sampled_from([0.2, 0.5]))
def test_padded_rows_do_not_reach_forward_statistics(name, size, seed, padding):
    """Forward of the unpadded rows and its buffers equal those of a batch that never had the padding."""
    padded, cut = (BUILDERS[name](size[-1], dtype=torch.float64) for _ in range(2))
    x, _, mask = draw(seed, *size, padding)
    if mask.all():
        return
    a, b = padded(x, mask), cut(x[~mask])
    assert torch.allclose(a[~mask], b, rtol=1e-9, atol=1e-12)
    for key, value in cut.state_dict().items():
        assert torch.allclose(padded.state_dict()[key].double(), value.double(), rtol=1e-9, atol=1e-12), key
