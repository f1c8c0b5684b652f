"""metrics.csv: one row per logged step, and a resumed run writes the same file as one that never stopped.

Lightning's own CSV logger deletes the file of an earlier process, and its row for a step comes after the checkpoint of
that step, so that a kill in between loses the row. Here the row comes first, and the checkpoint says how many count.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from un.files import name_in_errors, replace_file
from un.training.callbacks.batches import ends_step

EVALUATION_PREFIXES = ("val/", "test/")


class MetricsFile(Callback):
    """Writes `<run folder>/metrics.csv`; every row has an epoch (the first is 0) and a step (optimizer steps done).

    Training metrics have a row every `trainer.log_every_n_steps`, validation metrics one per validation. Cells of other
    metrics are empty. The file is complete on disk after every row.
    """

    def __init__(self) -> None:
        self._path = Path()
        self._rows = 0
        self._columns: list[str] = []
        self._epoch = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._path = Path(trainer.default_root_dir) / "metrics.csv"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._keep_rows(self._rows)  # those of the checkpoint this process started from

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._epoch = trainer.current_epoch  # Lightning advances it when a training ends inside an epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the row of this step if it is due; accumulated batches of one step have one row."""
        if ends_step(trainer, batch_idx) and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            metrics = trainer.logged_metrics
            self.write(trainer, {k: v for k, v in metrics.items() if not k.startswith(EVALUATION_PREFIXES)})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, {k: v for k, v in trainer.logged_metrics.items() if k.startswith("val/")})

    def write(self, trainer: Trainer, metrics: Mapping[str, Tensor | float]) -> None:
        if not metrics or not trainer.is_global_zero:
            return
        row = {name: float(value) for name, value in sorted(metrics.items())}
        self._append({"epoch": self._epoch, "step": trainer.global_step, **row})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows, self._epoch = state_dict["rows"], state_dict["epoch"]

    def _append(self, row: Mapping[str, float]) -> None:
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._rewrite(rows)
        with name_in_errors(self._path), self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        self._rows += 1

    def _keep_rows(self, number: int) -> None:
        """Leaves the first rows and the columns that these use, as if nothing had come after."""
        rows = self._read()[:number]
        self._rows = len(rows)
        used = {name for row in rows for name, value in row.items() if value}
        header = list(rows[0]) if rows else []
        self._columns = [name for name in header if name in used]
        self._rewrite([{name: row[name] for name in self._columns} for row in rows])

    def _read(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with replace_file(self._path) as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if self._columns:
                writer.writeheader()
            writer.writerows(rows)


def log_values(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Sends values that no LightningModule logs to metrics.csv and to every logger."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, MetricsFile):
            callback.write(trainer, values)
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step - 1)  # Lightning counts from 0 for its loggers
