"""What is done with a finished run: folded evaluation, a folded checkpoint, graphs, and how these fail."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tests.integration.commands import REPOSITORY, run_here
from un.command.errors import UserError
from un.finished import load_run
from un.finished.run_times import time_runs
from un.folding import load_folded
from un.norms import UnifiedNorm
from un.reports.result import read_result

MISSING = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def check_predictions(run: Path, weights: Path, tolerance: float) -> None:
    """Probabilities with these weights are those of the run."""
    image = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8))
    expected, found = (load_run(run, chosen).predict([image], topk=10)[0] for chosen in (None, weights))
    assert found == pytest.approx(expected, abs=tolerance)


def test_folded_evaluation(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = UnifiedNorm.forward

    def count(norm: UnifiedNorm, *args: torch.Tensor) -> torch.Tensor:
        calls.extend([] if norm.training else [norm])  # a new norm is tried in training mode
        return forward(norm, *args)

    monkeypatch.setattr(UnifiedNorm, "forward", count)
    outcome = run_here("eval.py", f"run={finished}", "fold=true")
    assert outcome.code == 0, outcome
    folded = json.loads((finished / "eval.json").read_text())
    recorded = {k: v for k, v in read_result(finished / "result.json").metrics.items() if k.startswith("test/")}
    assert folded["folded"]
    assert folded["metrics"] == pytest.approx(recorded, rel=1e-5)
    assert folded["fold"] == {"norms": 3, "folded": 3}
    speed = folded["speed"]
    assert min(speed["speed_up"], speed["unfolded_seconds"], speed["folded_seconds"]) > 0
    assert "3 of 3 norms folded" in outcome.output
    assert f"{speed['speed_up']:.2f} times as fast" in outcome.output
    assert "DIFFERENT" not in outcome.output
    # Norms run only where the fold is checked and in the timing: once in float32, and 6 rounds on each of 4 batches.
    assert len([norm for norm in calls if norm.weight.dtype == torch.float32]) == 3 * (1 + 4 * (5 + 1))


def test_times_of_folded_runs_are_over_that_of_the_first(finished: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(finished, twin)
    first, second = time_runs([finished, twin], rounds=3, warmup=0)
    assert first.ratio == 1
    assert min(first.seconds, second.seconds, second.ratio) > 0
    content = json.loads((twin / "result.json").read_text())
    (twin / "result.json").write_text(json.dumps({**content, "experiment": "another"}))
    with pytest.raises(UserError, match="times of different experiments do not compare: another, digits_vit"):
        time_runs([finished, twin], rounds=1, warmup=0)


def test_folded_checkpoint_loads_into_the_plain_class(finished: Path) -> None:
    outside = finished / "elsewhere.ckpt"
    outcome = run_here("scripts/fold.py", f"run={finished}", f"output={outside}")
    assert outcome.code == 0, outcome
    report = outside.with_suffix(".txt").read_text()
    assert "3 of 3 norms folded" in report
    assert report.strip() in outcome.output
    options = {"patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2, "class_token": False, "fc_norm": False}
    sizes = {"img_size": 8, "in_chans": 1, "num_classes": 10, "global_pool": "avg"}
    model = load_folded(outside, timm.create_model("vit_tiny_patch16_224", **options, **sizes))
    assert not any(isinstance(module, nn.LayerNorm | UnifiedNorm) for module in model.modules())
    check_predictions(finished, outside, tolerance=1e-5)


def test_onnx_and_eight_bits(finished: Path) -> None:
    outcome = run_here("scripts/export.py", f"run={finished}", "quantize=int8", "calibration=16")
    assert outcome.code == 0, outcome
    assert "operators of norms: none" in outcome.output
    content = json.loads((finished / "exports/folded_int8.onnx.json").read_text())
    assert content["difference"] < 1e-5
    assert content["operators_of_norms"] == {}
    assert content["quantization"] == "int8, ranges from 16 training examples"
    recorded = {k: v for k, v in read_result(finished / "result.json").metrics.items() if k.startswith("test/")}
    assert content["metrics"]["recorded"] == recorded
    assert content["metrics"]["float"] == pytest.approx(recorded, rel=1e-5)
    assert content["metrics"]["int8"]["test/loss"] == pytest.approx(recorded["test/loss"], rel=0.05)
    assert content["metrics"]["int8"]["test/loss"] != content["metrics"]["float"]["test/loss"]
    assert content["megabytes_int8"] < 0.5 * content["megabytes"]
    check_predictions(finished, finished / "exports/folded.onnx", tolerance=1e-5)
    check_predictions(finished, finished / "exports/folded_int8.onnx", tolerance=0.05)


def test_torch_export_with_its_norms(finished: Path) -> None:
    outcome = run_here("scripts/export.py", f"run={finished}", "format=torch_export", "fold=false")
    assert outcome.code == 0, outcome
    program = torch.export.load(finished / "exports/unfolded.pt2")
    assert program.module()(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert any("running_var" in name for name in program.state_dict)


def test_what_cannot_be_exported_says_so(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10] if images.sum() > 0 else -images.flatten(1)[:, :10]

    monkeypatch.setattr("timm.models.vision_transformer.VisionTransformer.forward", decide)
    outcome = run_here("scripts/export.py", f"run={finished}", "format=torch_export", "fold=false")
    outcome.check_error("VisionTransformer of", "cannot be exported as torch_export:", "data-dependent")
    assert not list((finished / "exports").iterdir())


def test_a_graph_that_computes_something_else_is_not_kept(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("un.finished.export.measure_difference", lambda *outputs: 0.5)
    outcome = run_here("scripts/export.py", f"run={finished}", "format=torch_export")
    outcome.check_error("differs from PyTorch by 5.0e-01", "it is not kept")
    assert not list((finished / "exports").iterdir())


def test_missing_package(trained: Path) -> None:
    command = [sys.executable, "-c", MISSING, "onnxscript", "scripts/export.py", f"run={trained}"]
    outcome = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert outcome.returncode == 2, outcome
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: onnxscript, which belongs to the extra 'export', is not installed: pip install")
