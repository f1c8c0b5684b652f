"""The device of these tests: the GPU, or with DEVICE=cpu in the environment the CPU, which rehearses what it can."""

import os

# One test process for each pair of cores compiles by itself, and needs no pool of compilers.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    name = os.environ.get("DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU; DEVICE=cpu rehearses these tests without one")
    torch.manual_seed(0)
    # Products in float32 proper: TensorFloat-32 rounds like half precision.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)
