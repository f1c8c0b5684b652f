"""Two processes under Lightning's DDP share the training batches of one and evaluate every example once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import lightning, torch
from torch import nn
from timm.optim import create_optimizer_v2
from un.vision.data import ImageDataModule
from un.vision.module import ImageClassification
from un.vision.transforms import BatchTransform

class Recorder(lightning.Callback):
    def __init__(self): self.seen = {"train": [], "val": []}
    def note(self, name, batch): self.seen[name].append(sorted(batch[0].double().sum((1, 2, 3)).tolist()))
    def on_train_batch_start(self, trainer, module, batch, batch_idx): self.note("train", batch)
    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0): self.note("val", batch)
    def on_fit_end(self, trainer, module):
        accuracy = float(trainer.callback_metrics["val/acc1"])
        with open(f"{sys.argv[2]}/{trainer.world_size}-{trainer.global_rank}.json", "w") as file:
            json.dump(self.seen | {"acc1": accuracy}, file)

class Model(nn.Sequential):
    num_classes = 3
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))

if __name__ == "__main__":
    world_size = int(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transform = BatchTransform([0.5] * 3, [0.25] * 3)
    data = ImageDataModule(None, transform, 12, 3, 8 // world_size, num_classes=3, val_size=1, limit=21)
    module = ImageClassification(Model(), lambda model: create_optimizer_v2(model, "sgd", lr=0.0))
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", devices=world_size, num_sanity_val_steps=0,
        strategy="ddp" if world_size > 1 else "auto", callbacks=[Recorder()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, datamodule=data)
"""


@pytest.mark.slow  # starts three processes that import everything
def test_two_processes_do_the_work_of_one(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "HOME": str(tmp_path)}
    for world_size in ("1", "2"):
        command = [sys.executable, tmp_path / "program.py", world_size, tmp_path]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    whole, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert len(whole["train"]) == 2 * (21 // 8)
    for batch, left, right in zip(whole["train"], first["train"], second["train"], strict=True):
        assert batch == pytest.approx(sorted(left + right))
    seen = [
        sorted(total for part in parts for batch in part["val"] for total in batch)
        for parts in ([whole], [first, second])
    ]
    assert len(seen[0]) == 2 * 21
    assert seen[0] == pytest.approx(seen[1])
    assert whole["acc1"] == pytest.approx(first["acc1"])
    assert first["acc1"] == second["acc1"]
