"""Whether this machine has the devices that a run asks for."""

from __future__ import annotations

import torch
from lightning.pytorch.accelerators import MPSAccelerator
from omegaconf import DictConfig

from un.command.errors import UserError

GPU, CUDA = "gpu", "cuda"


def check_devices(config: DictConfig) -> None:
    """Checks accelerator and number of devices of a trainer, before any data are read.

    Raises:
        UserError: There is no GPU, or there are fewer than asked for.
    """
    if config.accelerator not in (GPU, CUDA):
        return
    found = torch.cuda.device_count()
    if not found and not (config.accelerator == GPU and MPSAccelerator.is_available()):
        why = "" if torch.version.cuda else ", and the installed torch has no CUDA"
        raise UserError(
            f"trainer.accelerator={config.accelerator}: torch finds no GPU on this machine{why}; trainer=cpu trains "
            "without one, debug=fast tries a recipe in seconds"
        )
    wanted = config.devices
    if found and isinstance(wanted, int) and wanted > found:
        raise UserError(f"trainer.devices={wanted}: this machine has {found}; trainer.devices=-1 takes all of them")
