"""Loading data so that a training can stop anywhere and resume, whatever the task.

Batch i of epoch e depends on (seed, e, i) and the process only, so two numbers are all there is to save.
"""

import contextlib
import hashlib
import math
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import lightning
import numpy as np
from datasets.data_files import get_data_patterns

HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
PLAIN_PATH = re.compile(r"[\w ./-]+")
USUAL_SPLITS = (  # spellings of a split; the Hugging Face library knows the same
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)


def derive_seed(*numbers: int) -> int:
    """Mixes non-negative integers into one 64-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def load_dataset(path: str, configs: Sequence[str] = ()) -> datasets.DatasetDict:
    """Reads all splits of a hub id or a local folder.

    Of a data set that has several configurations, the first of `configs` is taken.

    Raises:
        ValueError: where neither this machine nor the hub has it, or the folder holds no data set.
    """
    if not os.path.isdir(path) and not HUB_NAME.fullmatch(path):
        raise ValueError(f"{show_path(path)}: no such folder; give a local folder or a Hugging Face hub id")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # they would clutter logs and precede an error message
    try:
        return read_splits(path, configs)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split()) or type(cause).__name__
        what = "holds no data set that can be read" if os.path.isdir(path) else "no such folder, nor on the hub"
        raise ValueError(f"{show_path(path)}: {what} ({reason})") from error


def show_path(path: str) -> str:
    """Returns `data.path` as it was given and, where that is relative, as the folder that it would be here."""
    return f"data.path={path!r}" + ("" if os.path.isabs(path) else f" (as a folder {os.path.abspath(path)})")


def count_updates(trainer: lightning.Trainer) -> tuple[float, int]:
    """Returns the optimizer updates of the whole training, infinitely many if it has no end, and those of an epoch."""
    trainer.fit_loop.setup_data()  # Lightning leaves it for later where the number of epochs is not limited
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return trainer.estimated_stepping_batches, per_epoch


def read_splits(path: str, configs: Sequence[str]) -> datasets.DatasetDict:
    """Reads all splits with the Hugging Face library; see `load_dataset`."""
    if os.path.isdir(path) and not PLAIN_PATH.fullmatch(os.path.realpath(path)):
        link = link_folder(path)
        patterns = get_data_patterns(link)
        files = {split: [f"{link}/{pattern}" for pattern in chosen] for split, chosen in patterns.items()}
        return datasets.load_dataset(link, data_files=files)  # otherwise it would look where the link leads
    try:
        return datasets.load_dataset(path)
    except ValueError as error:
        is_choice = str(error).startswith("Config name is missing")
        available = datasets.get_dataset_config_names(path) if is_choice else []
        chosen = next((config for config in configs if config in available), None)
        if chosen is None:
            raise
        return datasets.load_dataset(path, chosen)


def link_folder(path: str) -> str:
    """Returns a link in the library's cache to a folder whose name it would take for a pattern or an address."""
    folder = os.path.realpath(path)
    link = Path(datasets.config.HF_DATASETS_CACHE, "links", hashlib.sha256(os.fsencode(folder)).hexdigest())
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    return str(link)


def find_split(names: Collection[str], *wanted: str) -> str | None:
    """Returns the first split wanted that is there, under this name or else a usual one, as `val` for `validation`."""
    for split in wanted:
        spellings = next((spellings for spellings in USUAL_SPLITS if split in spellings), ())
        found = [split] if split in names else [name for name in names if name.lower() in spellings]
        if len(found) > 1:
            raise ValueError(f"split {split!r} may be any of {', '.join(found)}; name one of them")
        if found:
            return found[0]
    return None


def require_split(names: Collection[str], path: str, *wanted: str) -> str:
    """Returns what `find_split` does, or raises a ValueError where there is no such split in the data at `path`."""
    found = find_split(names, *wanted)
    if found is None:
        raise ValueError(f"no split {wanted[-1]!r} in {path}; there are {', '.join(names)}")
    return found


class Sampler(Protocol):
    """Knows what the batches of an epoch are made of; every epoch has the same number of batches."""

    epoch: int

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...


class BatchLoader:
    """Iterates over batches; its state is the epoch and the number of batches handed out, nothing else.

    `make_batches` makes the batches of the sampler's current epoch, from the given number on. An iterator asks for
    epoch and position when its first batch is wanted, because Lightning makes the iterator before it sets the epoch.
    """

    batch_sampler = None  # Lightning looks for it where there is a sampler

    def __init__(self, sampler: Sampler, make_batches: Callable[[int], Iterable[Any]]) -> None:
        self.sampler, self.make_batches = sampler, make_batches
        self._epoch, self._position = 0, 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self._epoch, self._position = self.sampler.epoch, 0
        if self._resume is not None:
            epoch, position = self._resume
            self._resume = None
            self._position = position if epoch == self._epoch else 0
        for batch in self.make_batches(self._position):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the position after the batch handed out last."""
        return {"epoch": self._epoch, "batch": self._position, "num_batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next iterator, if it is of the same epoch, start where the state was taken."""
        if state["num_batches"] != len(self):
            raise ValueError(
                f"the checkpoint was written with {state['num_batches']} batches per epoch, this run has {len(self)}; "
                "resume with the same data, batch size and number of devices"
            )
        self._resume = (state["epoch"], state["batch"])
        self._epoch, self._position = self._resume


class ResumableDataModule(lightning.LightningDataModule, ABC):
    """Splits `train`, `val` and `test`, with a training loader that resumes where a checkpoint was written."""

    _train_loader: BatchLoader | None = None
    _train_state: dict[str, Any] | None = None  # for the next training loader

    @abstractmethod
    def make_loader(self, split: str, training: bool) -> BatchLoader:
        """Returns a new loader: of shuffled epochs for training, otherwise of every example in a fixed order."""

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def accumulation(self) -> int:
        """Number of batches per process that make up an update."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def train_dataloader(self) -> BatchLoader:
        """Returns the training loader; after `load_state_dict` it starts where the checkpoint was written."""
        self._train_loader = self.make_loader("train", training=not self._overfits)
        if self._train_state is not None:
            self._train_loader.load_state_dict(self._train_state)
            self._train_state = None
        return self._train_loader

    def val_dataloader(self) -> BatchLoader:
        return self.make_loader(self.name_loaded("val"), training=False)

    def test_dataloader(self) -> BatchLoader:
        return self.make_loader("test", training=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the training data; Lightning puts it into the checkpoint.

        Lightning asks the loader too, but gives that state back too late when the length of a schedule made it build
        the loader before it restored the loops.
        """
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_state = state_dict.get("train_loader")

    def name_loaded(self, split: str) -> str:
        """Returns the split that the loader of this one takes its examples from."""
        return "train" if split == "val" and self._overfits else split

    @property
    def _overfits(self) -> bool:
        """Whether `trainer.overfit_batches` asks for the same few plain batches in training and validation."""
        return bool(getattr(self.trainer, "overfit_batches", 0))
