"""Where a training batch stands among those of an optimizer step and of an epoch; `batch_idx` counts from 0."""

from lightning.pytorch import Trainer


def begins_step(trainer: Trainer, batch_idx: int) -> bool:
    """Tells that no gradient is kept from the batch before."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Tells that an optimizer step follows: enough batches were accumulated, or it is the last of the epoch."""
    return begins_step(trainer, batch_idx + 1) or ends_epoch(trainer, batch_idx)


def ends_epoch(trainer: Trainer, batch_idx: int) -> bool:
    return batch_idx + 1 >= trainer.num_training_batches
