"""Image classification as a LightningModule. Shapes: B batch, C channels, S image size, K classes."""

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from un.datasets import count_updates
from un.norms.core.penalties import sum_penalties
from un.norms.core.updates import call_after_step
from un.tasks import GraphPart
from un.vision.batches import Batch

FOLD_EXAMPLES = 4  # images that a fold is checked on
MIXUP_MODES = ("batch", "pair", "elem")  # timm takes any other word for the first
ERASING_MODES = ("const", "rand", "pixel")  # of timm's RandomErasing
TOP_K = 5  # of the second accuracy, for more than this many classes


class ImageClassification(lightning.LightningModule):
    """Cross-entropy training of a classifier, with timm's Mixup and moving average.

    Logs `train/loss` and `train/lr` by step; `val/` and `test/` `loss`, `acc1` and `acc5` (percent) by epoch.
    Norms with a penalty add it to the mean over the images of a batch; it is logged as `train/penalty`, and part of no
    reported loss.

    Gradients are those of the mean over all images of an update, however many accumulated batches it has and however
    large these are.
    """

    monitor = "val/acc1"
    monitor_mode = "max"
    distillation: Any = (
        None  # what the original of a retrofitted model adds to the loss, see `un.retrofit.distillation`
    )

    def __init__(
        self,
        model: nn.Module,  # maps images (B, C, S, S) to logits (B, K), with K as `num_classes`
        optimizer: Callable[[nn.Module], Optimizer],
        # Of timm, or of torch to be stepped after every update; from optimizer, number of updates, updates per epoch.
        scheduler: Callable[..., Scheduler | LRScheduler] | None = None,
        mixup: dict[str, Any] | None = None,  # arguments of `timm.data.Mixup`, which draws from numpy's global state
        # Arguments of timm's `RandomErasing`, for batches that have been mixed, as in timm's fast loader;
        # `data.transform.re_prob` erases single images, which are mixed afterwards.
        random_erasing: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,  # of the average of parameters and buffers; integer buffers are copied
        evaluate_ema: bool = True,  # validates and tests the average, if there is one
    ) -> None:
        super().__init__()
        self.model, self.make_optimizer, self.make_scheduler = model, optimizer, scheduler
        _check_shares({"label_smoothing": label_smoothing, "ema_decay": 0.0 if ema_decay is None else ema_decay})
        num_classes: Any = model.num_classes
        self.label_smoothing = label_smoothing
        self.mixup = None
        if mixup is not None:
            self.mixup = _build_mixup(num_classes=num_classes, label_smoothing=label_smoothing, **mixup)
        self.random_erasing = None if random_erasing is None else _build_erasing(**random_erasing)
        self.ema = None
        if ema_decay is not None:
            # Never trained, but in training mode with the rest, or Lightning warns; it changes the mode of both.
            self.ema = ModelEmaV3(model, decay=ema_decay).requires_grad_(False).train()
        self.evaluate_ema = evaluate_ema
        ranks = {"acc1": 1} if num_classes <= TOP_K else {"acc1": 1, "acc5": TOP_K}
        scores: dict[str, Metric | MetricCollection] = {
            name: 100 * MulticlassAccuracy(num_classes, top_k=rank, average="micro") for name, rank in ranks.items()
        }
        self.val_scores = MetricCollection(scores, prefix="val/")
        self.test_scores = self.val_scores.clone(prefix="test/")
        # Lightning's own mean over processes would divide by the rounded mean of their numbers of examples.
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self._batch_sizes: list[int] = []  # since the last update

    @property
    def inference_model(self) -> nn.Module:
        return self.ema.module if self.ema is not None and self.evaluate_ema else self.model

    def use_inference_model(self, model: nn.Module) -> None:
        self.model, self.ema = model, None

    def make_fold_inputs(self, batch: Batch) -> tuple[Tensor]:
        return (batch[0][:FOLD_EXAMPLES],)

    def call_model(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(batch[0])
        return logits

    predict = call_model

    def measure_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.call_model(model, batch), batch[1], reduction="none")

    def cut_graph(self, model: nn.Module, batch: Batch) -> GraphPart:
        return GraphPart(model.eval(), {"images": batch[0]}, {"images": {0: "batch"}}, ("logits",))

    def use_graph(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        self.use_inference_model(GraphModel(run))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, K), in training of the trained model, otherwise of the one for inference."""
        return self.model(images) if self.training else self.inference_model(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        smoothing = self.label_smoothing
        if self.mixup is not None:
            if len(images) % 2:
                hint = "; data.drop_last=true leaves out a last batch of another size"
                raise ValueError(f"data.batch_size={len(images)} must be even for task.mixup{hint}")
            images, targets = self.mixup(images, targets)  # smoothed and mixed (B, K)
            smoothing = 0.0
        if self.random_erasing is not None:
            self.random_erasing.device = images.device
            images = self.random_erasing(images)
        logits = self(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        self.log("train/lr", max(rates), batch_size=len(images))
        penalty = sum_penalties(self.model)
        if penalty is not None:
            self.log("train/penalty", penalty.detach(), batch_size=len(images))
            loss = loss + penalty
        if self.distillation is not None:
            taught = self.distillation(logits, lambda model: self.call_model(model, (images, targets)))
            if taught is not None:
                self.log("train/distillation", taught.detach(), batch_size=len(images))
                loss = loss + taught
        self._batch_sizes.append(len(images))
        return loss * (len(images) / self._batch_sizes[0])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scales the gradients to those of the mean over the images of the update, also where it is incomplete."""
        full = self.trainer.accumulate_grad_batches * self._batch_sizes[0]  # by which the sum was divided
        factor = full / sum(self._batch_sizes)
        self._batch_sizes = []
        if factor != 1:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, factor)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch, self.val_scores, self.val_loss)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch, self.test_scores, self.test_loss)

    def _score(self, batch: Batch, scores: MetricCollection, loss: MeanMetric) -> None:
        images, labels = batch
        logits = self(images)
        scores.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels), len(images))
        self.log(f"{scores.prefix}loss", loss)  # Lightning computes and resets them at the end of the epoch
        self.log_dict(scores, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Returns the optimizer and, if there is one, the scheduler, fitted to the length of this training."""
        optimizer = self.make_optimizer(self.model)
        call_after_step(optimizer, self._update_average)
        if self.make_scheduler is None:
            return optimizer
        num_updates, updates_per_epoch = count_updates(self.trainer)
        if not math.isfinite(num_updates):
            raise ValueError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        scheduler = self.make_scheduler(optimizer, num_updates, updates_per_epoch)
        if not isinstance(scheduler, Scheduler | LRScheduler):
            raise ValueError(
                f"scheduler makes a {type(scheduler).__name__}; images need one of timm or torch, as scheduler=cosine"
            )
        interval = "epoch" if isinstance(scheduler, Scheduler) and scheduler.t_in_epochs else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Sets the rate of what comes next: timm's schedulers are told the time."""
        if isinstance(scheduler, LRScheduler):
            scheduler.step()
        elif scheduler.t_in_epochs:
            scheduler.step(self.current_epoch + 1)
        else:
            scheduler.step_update(self.global_step)

    def _update_average(self) -> None:
        if self.ema is not None:
            self.ema.update(self.model)


def _check_shares(values: dict[str, float]) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"task.{name}={value} must be between 0 and 1")


def _build_mixup(**arguments: Any) -> Mixup:
    """Builds timm's Mixup, which looks at its arguments only when it mixes."""
    try:
        mixup = Mixup(**arguments)
        right = mixup.mixup_alpha >= 0 and mixup.cutmix_alpha >= 0 and mixup.mixup_alpha + mixup.cutmix_alpha > 0
    except (AssertionError, TypeError) as error:
        raise ValueError(f"task.mixup: {error}") from error
    if not right:
        raise ValueError(
            f"task.mixup needs mixup_alpha={mixup.mixup_alpha} and cutmix_alpha={mixup.cutmix_alpha} of at least 0, "
            "not both 0"
        )
    _check_shares({"mixup.prob": mixup.mix_prob, "mixup.switch_prob": mixup.switch_prob})
    if mixup.mode not in MIXUP_MODES:
        raise ValueError(f"task.mixup.mode={mixup.mode} must be one of {', '.join(MIXUP_MODES)}")
    return mixup


def _build_erasing(**arguments: Any) -> RandomErasing:
    """Builds timm's RandomErasing, which takes any number for a probability."""
    if arguments.get("mode", "const") not in ERASING_MODES:
        raise ValueError(f"task.random_erasing.mode={arguments['mode']} must be one of {', '.join(ERASING_MODES)}")
    try:
        erasing = RandomErasing(**arguments, device="cpu")
    except TypeError as error:
        raise ValueError(f"task.random_erasing: {error}") from error
    _check_shares({"random_erasing.probability": erasing.probability})
    return erasing


class GraphModel(nn.Module):
    """A classifier that is computed elsewhere: `run` maps images (B, C, S, S) to a tuple of the logits (B, K)."""

    def __init__(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)[0]
