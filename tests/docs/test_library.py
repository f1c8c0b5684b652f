"""The page for loops of one's own works as it stands, and so does the program that it speaks of."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from un.norms import UnifiedNorm

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_program_trains_folds_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(sys, "argv", ["own_training_loop.py", "1", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples/own_training_loop.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "7 norms replaced" in output
    assert "7 of 7 norms folded" in output
    assert "norms are still in their warm-up" in output
    calibrated, folded, exported = re.findall(r"accuracy ([\d.]+) % (?:with|in)", output)
    assert calibrated == folded == exported


def test_the_snippets_of_the_page_work_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([1, 2])
    names = {"images": images, "labels": labels, "batches": [(images, labels)], "loss": F.cross_entropy}
    for snippet in SNIPPETS:
        exec(snippet, names)
        if "optimizer" not in names:
            names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.01)
    assert (tmp_path / "folded.ckpt").is_file()
    assert "25 of 25 norms folded" in capsys.readouterr().out
    assert not any(isinstance(module, nn.LayerNorm | UnifiedNorm) for module in names["plain"].modules())
    masked = [module for module in names["encoder"].modules() if isinstance(module, UnifiedNorm)]
    assert all(norm.iters == 1 and norm.shared_pad_mask is None for norm in masked)


def test_norms_surgery_and_folding_need_neither_lightning_nor_hydra() -> None:
    code = "import sys, un.folding, un.norms, un.surgery; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(found.stdout.split()) & {"lightning", "hydra", "omegaconf", "timm", "datasets"}
