"""A task of the smallest kind, reached by `_target_` as the real ones: what the runtime does, it does for any."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from un.reports.result import Result, read_result
from un.training import train as training
from un.training.run_folder import RunFolder, RunIdentity
from un.training.start import open_folder

NUM_FEATURES, NUM_CLASSES = 8, 3


class ToyLoader:
    """Batches that depend on (seed, epoch, number) only; the state is where it stands."""

    def __init__(self, seed: int, batch_size: int, num_batches: int, training: bool = False) -> None:
        self.seed, self.batch_size, self.num_batches, self.training = seed, batch_size, num_batches, training
        self.sampler, self.batch_sampler = self, None  # where Lightning finds set_epoch
        self.epoch = self.position = 0
        self.resume: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch if self.training else 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, first = self.resume or (self.epoch, 0)
        self.resume, self.position = None, first if epoch == self.epoch else 0
        for number in range(self.position, self.num_batches):
            generator = torch.Generator().manual_seed(1000 * self.seed + 100 * self.epoch + number)
            inputs = torch.randn(self.batch_size, NUM_FEATURES, generator=generator)
            self.position = number + 1
            yield inputs, inputs[:, :NUM_CLASSES].argmax(1)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resume = (state["epoch"], state["position"])
        self.position = state["position"]


@dataclass(frozen=True)
class ToyPreprocessor:
    """What a class means, in a file."""

    meaning: str

    def save(self, folder: Path) -> None:
        (folder / "meaning.txt").write_text(self.meaning)

    @classmethod
    def load(cls, folder: Path) -> Self:
        if not (folder / "meaning.txt").is_file():
            raise ValueError("meaning.txt is missing")
        return cls((folder / "meaning.txt").read_text())

    def explain_difference(self, other: Self) -> str:
        return "" if self == other else f"meaning {self.meaning!r} instead of {other.meaning!r}"

    def check_initial_weights(self, trained: Self) -> None:
        if self != trained:
            raise ValueError(self.explain_difference(trained))


class ToyData(LightningDataModule):
    preprocessor_class = ToyPreprocessor
    fixed_arguments = ("meaning",)

    def __init__(
        self,
        seed: int,
        batch_size: int = 4,
        num_batches: int = 5,
        path: str | None = None,
        meaning: str = "largest of three",
    ) -> None:
        super().__init__()
        if path is not None and not Path(path).is_dir():
            raise ValueError(f"data.path={path}: no such folder")
        self.seed, self.batch_size, self.num_batches = seed, batch_size, num_batches
        self.preprocessor = ToyPreprocessor(meaning)
        self.train_state: dict[str, int] | None = None
        self.loader: ToyLoader | None = None

    def use_preprocessor(self, preprocessor: ToyPreprocessor) -> None:
        self.preprocessor = preprocessor

    def make_example_batch(self, seed: int) -> tuple[Tensor, Tensor]:
        return next(iter(ToyLoader(seed, 4, 1)))

    def model_arguments(self) -> dict[str, Any]:
        return {"num_classes": NUM_CLASSES}

    def train_dataloader(self) -> ToyLoader:
        self.loader = ToyLoader(self.seed, self.batch_size, self.num_batches, training=True)
        if self.train_state is not None:
            self.loader.load_state_dict(self.train_state)
        return self.loader

    def make_loader(self, split: str, training: bool) -> ToyLoader:
        assert (split, training) == ("train", False)
        return ToyLoader(self.seed, self.batch_size, self.num_batches)

    def val_dataloader(self) -> ToyLoader:
        return ToyLoader(1, 8, 2)

    def test_dataloader(self) -> ToyLoader:
        return ToyLoader(2, 8, 3)

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self.loader.state_dict()} if self.loader else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train_state = state.get("loader")


class ToyModel(nn.Sequential):
    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Linear(NUM_FEATURES, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head


class ToyTask(LightningModule):
    monitor = "val/acc1"
    monitor_mode = "max"
    distillation: Any = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        scheduler: Any = None,
        explode_at: int | None = None,
        poisoned: str | None = None,
    ) -> None:
        super().__init__()
        self.model, self.make_optimizer, self.make_scheduler, self.explode_at = model, optimizer, scheduler, explode_at
        self.poisoned = poisoned  # layer that meets one NaN in place of a loss that is NaN
        if poisoned is not None:
            model.get_submodule(poisoned).register_forward_pre_hook(self.poison)

    def poison(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        explodes = self.training and self.explode_at is not None and self.global_step + 1 >= self.explode_at
        mask = torch.zeros_like(inputs[0])
        mask[0, 0] = torch.nan if explodes else 0
        return (inputs[0] + mask,)

    @property
    def inference_model(self) -> nn.Module:
        return self.model

    def call_model(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits: Tensor = model(batch[0])
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        if self.distillation is not None:
            loss = loss + self.distillation(logits, lambda model: self.call_model(model, batch))
        if self.explode_at is not None and self.poisoned is None and self.global_step + 1 >= self.explode_at:
            loss = loss * torch.nan
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._score(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._score(batch, "test")

    def _score(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        logits = self.model(batch[0])
        accuracy = 100.0 * (logits.argmax(1) == batch[1]).float().mean()
        metrics = {f"{split}/loss": F.cross_entropy(logits, batch[1]), f"{split}/acc1": accuracy}
        self.log_dict(metrics, on_epoch=True, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, T_max=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_config(folder: Path, *overrides: str) -> DictConfig:
    """The groups of configs/train.yaml for the toy task."""
    runtime = Path(__file__).parents[2] / "configs"
    config = OmegaConf.create(
        {
            "seed": 0,
            "force": False,
            "init_weights": None,
            "retrofit": None,
            "retrofit_options": OmegaConf.load(runtime / "retrofit_options/default.yaml"),
            "compile": None,
            "average_checkpoints": None,
            "final_statistics": None,
            "norm_defaults": {"filtration": True, "warmup_steps": 4},
            "task": {"_target_": "tests.training.toy.ToyTask"},
            "data": {"_target_": "tests.training.toy.ToyData", "seed": "${seed}", "path": None},
            "model": {"_target_": "tests.training.toy.ToyModel"},
            "norm": {"_target_": "un.norms.UnifiedNorm", "_partial_": True, "window": 2, "warmup_steps": 4},
            "surgery": {"include": ["*"], "exclude": [], "carry_affine": True, "reset_steps": False, "pad_mask": True},
            "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.05},
            "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True},
            "trainer": OmegaConf.load(runtime / "trainer/default.yaml"),
            "callbacks": OmegaConf.load(runtime / "callbacks/default.yaml"),
            "logger": {},
            "paths": {"runs": str(folder)},
        }
    )
    defaults = ["trainer.max_epochs=3", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"]
    rates = ["callbacks.watch_norms.every_n_steps=2", "callbacks.checkpoints.every_n_steps=1"]
    return OmegaConf.merge(config, OmegaConf.from_dotlist([*defaults, *rates, *overrides]))


def make_identity(folder: Path, norm: str = "un") -> RunIdentity:
    return RunIdentity(folder, "toy", {"norm": norm, "model": "toy", "data": "toy"}, ("norm=un",))


def run_toy(folder: Path, *overrides: str, **groups: Any) -> Result:
    """Trains in a folder as `train.py` would; `groups` take the place of whole groups of the config."""
    config = make_config(folder, *overrides)
    config.update(groups)
    open_folder(RunFolder(folder), config)
    training.train(config, make_identity(folder))
    return read_result(folder / "result.json")
