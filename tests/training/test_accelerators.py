"""A run for devices that the machine lacks ends with one line that says how to do without."""

import pytest
import torch
from omegaconf import OmegaConf

from un.command.errors import UserError
from un.training.accelerators import check_devices


@pytest.mark.parametrize(
    ("found", "accelerator", "devices", "message"),
    [
        (0, "gpu", 1, r"trainer.accelerator=gpu: torch finds no GPU on this machine.*; trainer=cpu trains without one"),
        (0, "cuda", -1, "trainer.accelerator=cuda: torch finds no GPU"),
        (2, "gpu", 4, "trainer.devices=4: this machine has 2; trainer.devices=-1 takes all"),
        (0, "cpu", 4, None),
        (0, "auto", 1, None),
        (2, "gpu", -1, None),
        (2, "gpu", "auto", None),
    ],
)
def test_devices(monkeypatch, found, accelerator, devices, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr("un.training.accelerators.MPSAccelerator.is_available", lambda: False)
    config = OmegaConf.create({"accelerator": accelerator, "devices": devices})
    if message is None:
        check_devices(config)
        return
    with pytest.raises(UserError, match=message):
        check_devices(config)
