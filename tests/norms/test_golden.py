"""Agreement with recorded outputs of the official UN, PowerNorm, MABN and RBN, every step and every buffer."""

import numpy as np
import pytest
import torch

from tests.norms.helpers import GOLDEN, relative_error, step
from un.norms import MovingAverageBatchNorm, PowerNorm, RegularizedBatchNorm, UnifiedNorm

FILES = sorted(
    path.relative_to(GOLDEN) for kind in ("un", "powernorm", "mabn") for path in (GOLDEN / kind).glob("*.npz")
)


def build(kind, channels, config, hyper, dtype):
    config = [int(value) for value in config]
    hyper = [float(value) for value in hyper]
    if kind == "un":
        forward, backward, warmup, filtration, *_ = config
        options = {"window": (forward, backward), "warmup_steps": warmup, "filtration": bool(filtration)}
        return UnifiedNorm(channels, eps=hyper[0], momentum=hyper[1], dtype=dtype, **options)
    if kind == "powernorm":
        options = {"warmup_steps": config[0], "num_groups": config[1]}
        alphas = {"alpha_forward": hyper[0], "alpha_backward": hyper[1]}
        return PowerNorm(channels, eps=hyper[2], dtype=dtype, **options, **alphas)
    return MovingAverageBatchNorm(
        channels, window=config[0], warmup_steps=config[1], momentum=hyper[0], eps=hyper[1], dtype=dtype
    )


def test_recordings_are_there():
    assert len(FILES) == 9


@pytest.mark.parametrize("file", FILES, ids=str)
def test_agrees_with_recording(file):
    with np.load(GOLDEN / file) as archive:
        record = {name: torch.from_numpy(archive[name]) for name in archive.files}
    dtype = record["x"].dtype
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    norm = build(file.parts[0], record["x"].shape[-1], record["config"], record["hyper"], dtype)
    norm.load_state_dict({name[5:]: value for name, value in record.items() if name.startswith("init_")})
    for i in range(len(record["x"])):
        mask = record["mask"][i] if "mask" in record else None
        ours = step(norm, record["x"][i], record["gy"][i], mask)
        for name, value in zip(("y", "gx", "gw", "gb"), ours, strict=True):
            assert relative_error(value, record[name][i]) < tolerance, (i, name)
    state = norm.state_dict()
    for name, value in record.items():
        if name.startswith("final_"):
            assert relative_error(state[name[6:]], value) < tolerance, name
    norm.eval()
    assert relative_error(norm(record["x_eval"]).detach(), record["y_eval"]) < tolerance


def test_regularized_batchnorm_agrees_with_recording():
    """Gradients are those of sum(y gy) + penalty; rows of padding are compared in the gradient alone."""
    with np.load(GOLDEN / "rbn" / "diff_0.1_0.01.npz") as archive:
        record = {name: torch.from_numpy(archive[name]) for name in archive.files}
    eps, momentum, *penalties = record["hyper"].tolist()
    options = dict(zip(("penalty_mean", "penalty_variance"), penalties, strict=True))
    norm = RegularizedBatchNorm(record["x"].shape[-1], eps=eps, momentum=momentum, dtype=torch.float64, **options)
    norm.load_state_dict({name[5:]: value for name, value in record.items() if name.startswith("init_")})
    for i, (x, mask) in enumerate(zip(record["x"], record["mask"], strict=True)):
        norm.zero_grad()
        y = norm(x.requires_grad_(), mask)
        penalty = norm.penalty()
        ((y * record["gy"][i]).sum() + penalty).backward()
        ours = {"y": y.detach()[~mask], "gx": x.grad, "gw": norm.weight.grad, "gb": norm.bias.grad}
        ours |= {"penalty": penalty.detach(), "running_mean": norm.running_mean, "running_var": norm.running_var}
        for name, value in ours.items():
            expected = record[name][i][~mask] if name == "y" else record[name][i]
            assert relative_error(value, expected) < 1e-12, (i, name)
    assert relative_error(norm.eval()(record["x_eval"]).detach(), record["y_eval"]) < 1e-12
