"""Records what the norms see while a model trains (`callbacks=activation_stats`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from un.analysis.recorded_norms import choose_norms
from un.analysis.recorder import Recorder, StatisticsRow
from un.analysis.storage import StatisticsFiles
from un.command.value_types import FromOne
from un.surgery.recognition import list_norms

log = logging.getLogger(__name__)


class ActivationStats(Callback):
    """Writes `activation_stats.parquet` into the run folder: one row per recorded norm, every n optimizer steps.

    A resumed run ends with the file of one that never stopped. Of several processes the first records its own batches.

    Args:
        every_n_steps: optimizer steps between two rows of a norm.
        include: globs on dotted names of the norms to record.
        exclude: globs of norms to leave out.
        draw_figures: draw `figures/` when the training ends.
    """

    def __init__(
        self,
        every_n_steps: FromOne,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        draw_figures: bool = True,
    ) -> None:
        self.every_n_steps, self.include, self.exclude = every_n_steps, tuple(include), tuple(exclude)
        self.draw_figures = draw_figures
        self._recorder = Recorder([])
        self._files: StatisticsFiles | None = None
        self._rows: list[StatisticsRow] = []
        self._last_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            norms = list_norms(pl_module.get_submodule("model"))
            self._recorder = Recorder(choose_norms(norms, self.include, self.exclude))
            self._files = StatisticsFiles(Path(trainer.default_root_dir))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops rows after the checkpoint this process started from."""
        if self._files is not None:
            self._files.keep_until(self._last_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # For a step that is recorded, and for the one before it.
        place = (trainer.global_step + 1) % self.every_n_steps
        if place == 0 or place == self.every_n_steps - 1:
            self._recorder.attach(full=place == 0)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step + 1
        if step % self.every_n_steps == 0:
            self._rows += self._recorder.collect(step)
            self._last_step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recorder.detach()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()
        if self.draw_figures and self._files is not None:
            self._draw(Path(trainer.default_root_dir))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was recorded until a training diverged or was interrupted."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        self._flush()  # the rows are on disk before the checkpoint is
        return {"last_step": self._last_step, "previous": self._recorder.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]
        self._recorder.load_state_dict(state_dict["previous"])

    def _flush(self) -> None:
        if self._files is not None:
            self._files.append(self._rows)
        self._rows = []

    def _finish(self) -> None:
        self._recorder.detach()
        self._flush()

    def _draw(self, folder: Path) -> None:
        try:
            from un.analysis.drawing import draw_run

            draw_run(folder)
        except Exception as error:  # a picture that fails must not cost the training
            log.warning("no figures were drawn; continuing without them: %s", " ".join(str(error).split()))
