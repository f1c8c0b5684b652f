"""Shared by the norm tests."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from un import norms

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

C = 6  # channels


def paper_options() -> dict:
    """The switches of configs/norm/un_paper.yaml, and no warm-up, as in the paper."""
    text = yaml.safe_load((ROOT / "configs/norm/un_paper.yaml").read_text())
    return {"warmup_steps": 0, **{key: value for key, value in text.items() if key != "defaults"}}


def read_example():
    """The norm of docs/add_a_norm.md, as it stands there."""
    names: dict = {}
    page = (ROOT / "docs/add_a_norm.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), names)
    return names["MyNorm"]


# Every norm with options that reach its interesting branches within a few calls.
BUILDERS = {
    "un": lambda c, **k: norms.UnifiedNorm(c, warmup_steps=2, filtration=True, **k),
    "un_paper": lambda c, **k: norms.UnifiedNorm(c, **paper_options(), filtration=True, **k),
    "un_centered": lambda c, **k: norms.UnifiedNorm(c, warmup_steps=2, centering="batch", **k),
    "un_window_centered": lambda c, **k: norms.UnifiedNorm(c, warmup_steps=2, centering="window", **k),
    "batchnorm": norms.BatchNorm,
    "rbn": norms.RegularizedBatchNorm,
    "powernorm": lambda c, **k: norms.PowerNorm(c, warmup_steps=3, num_groups=2 if c % 2 == 0 else 1, **k),
    "powernorm_offline": lambda c, **k: norms.PowerNorm(c, warmup_steps=3, group_scaling=False, **k),
    "mabn": lambda c, **k: norms.MovingAverageBatchNorm(c, window=4, warmup_steps=2, **k),
    "rmsnorm": norms.RMSNorm,
    "rep_batchnorm": norms.RepBatchNorm,
    "prepbn": lambda c, **k: norms.ProgressiveRepBatchNorm(c, steps=3, layer_norm_steps=1, **k),
    "tapernorm": lambda c, **k: norms.TaperNorm(c, start_steps=1, end_steps=4, **k),
    "tapernorm_layernorm": lambda c, **k: norms.TaperNorm(c, base="layernorm", start_steps=1, end_steps=4, **k),
    "dyt": norms.DynamicTanh,
    "derf": norms.DynamicErf,
    "groupnorm": lambda c, **k: norms.GroupNorm(c, num_groups=2 if c % 2 == 0 else 1, **k),
    "scalenorm": norms.ScaleNorm,
    "channel_map": norms.ChannelMap,
    "centered_map": norms.CenteredMap,
    "my_norm": read_example(),
}


def takes_sync(name: str) -> bool:
    try:
        BUILDERS[name](C, sync=True)
    except TypeError:
        return False
    return True


OFFLINE = ("un", "un_paper", "un_centered", "un_window_centered", "batchnorm", "powernorm_offline", "mabn")
OFFLINE = (*OFFLINE, "rep_batchnorm", "prepbn", "rbn", "channel_map")  # which must have an inference map; others may
# What a norm claims decides which of the common tests are for it.
STATELESS = [name for name in BUILDERS if not any(True for _ in BUILDERS[name](C).buffers())]
STATISTICAL = [name for name in BUILDERS if name not in STATELESS]
SYNCING = [name for name in STATISTICAL if takes_sync(name)]
REFUSING = [name for name in STATISTICAL if any("nonfinite_counter" in key for key in BUILDERS[name](C).state_dict())]


def step(norm, x, grad, mask=None):
    """One training call: output and gradients of input, weight and bias."""
    norm.zero_grad()
    x = x.clone().requires_grad_()
    y = norm(x, mask)
    y.backward(grad)
    parameters = [None if p is None else p.grad for p in (norm.weight, norm.bias)]
    return y.detach(), x.grad, *parameters


def relative_error(ours, theirs) -> float:
    ours, theirs = (torch.as_tensor(np.asarray(v)).double() for v in (ours, theirs))
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()


def copy_state(norm):
    return {name: value.clone() for name, value in norm.state_dict().items()}


def assert_same(ours, expected, tolerance=0.0):
    """Compares mappings or sequences of tensors, to the bit by default; only None is the same as None."""
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys()
        pairs = [(key, ours[key], value) for key, value in expected.items()]
    else:
        pairs = [(place, *pair) for place, pair in enumerate(zip(ours, expected, strict=True))]
    for place, a, b in pairs:
        assert (a is None) == (b is None), place
        if a is not None:
            a, b = (value.double() if tolerance else value for value in (a, b))
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, k=place: f"{k}: {text}")


def advance(norm, calls=5, seed=1):
    """Some training calls on random batches."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    for _ in range(calls):
        x, grad = torch.randn(2, 4, 3, C, generator=generator, dtype=dtype)
        step(norm, x, grad)


class ForbidHostReads(TorchDispatchMode):
    """Fails on the operators that copy a value from the device to the host, or whose output shape depends on one."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, func
        return func(*args, **(kwargs or {}))
