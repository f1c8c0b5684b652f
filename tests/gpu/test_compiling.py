"""Compiled training on a GPU computes what eager training there does, with every norm."""

import pytest
import torch

from tests.compilation import assert_compiled_training_agrees
from tests.gpu.helpers import move
from tests.norms.test_compiling import NORMS, build_block, compute_loss, make_batches

pytestmark = pytest.mark.gpu

STEPS = 9  # past every phase
REHEARSED = ("un",)  # on the CPU, where a C++ compiler takes long
FLOAT32 = ("un", "un_filtration", "powernorm")  # the type that is trained in; the others would be the same code again


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, torch.float64, 1e-9) for name in NORMS] + [(name, torch.float32, 1e-3) for name in FLOAT32],
)
def test_training_agrees(name, dtype, tolerance, device) -> None:
    if device.type == "cpu" and name not in REHEARSED:
        pytest.skip("compiled in the slow tests")
    model = build_block(name).to(device, dtype)
    batches = move(make_batches(STEPS), device, dtype)
    assert_compiled_training_agrees(model, batches, compute_loss, "inductor", tolerance)
