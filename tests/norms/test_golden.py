"""Agreement with recorded outputs of the official UN, PowerNorm and MABN, every step and every buffer."""

import numpy as np
import pytest
import torch

from tests.norms.helpers import GOLDEN, relative_error, step
from un.norms import MovingAverageBatchNorm, PowerNorm, UnifiedNorm

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
