"""What is done with a finished run: folded evaluation, a folded checkpoint, graphs; and the mistakes, one line each."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.integration.commands import REPOSITORY, run_here
from un.finished.fold_run import load_folded
from un.norms import UnifiedNorm
from un.reports.result import read_result

MISSING = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    outcome = run_here("train.py", f"paths.runs={runs}", "debug=fast", "trainer.accelerator=cpu", "model.depth=2")
    assert outcome.code == 0, outcome
    (result,) = runs.rglob("result.json")
    return result.parent


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "norm=un" / "seed=0"))


def test_folded_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = UnifiedNorm.forward
    monkeypatch.setattr(UnifiedNorm, "forward", lambda *args: calls.append(args[0]) or forward(*args))
    assert run_here("eval.py", f"run={folder}").code == 0
    unfolded, num_calls = json.loads((folder / "eval.json").read_text()), len(calls)
    outcome = run_here("eval.py", f"run={folder}", "fold=true")
    assert outcome.code == 0, outcome
    folded = json.loads((folder / "eval.json").read_text())
    assert (unfolded["folded"], folded["folded"]) == (False, True)
    assert unfolded["same"]
    assert folded["metrics"] == pytest.approx(unfolded["metrics"], rel=1e-5)
    assert folded["fold"] == {"norms": 5, "folded": 5}
    speed = folded["speed"]
    assert min(speed["speed_up"], speed["unfolded_seconds"], speed["folded_seconds"]) > 0
    assert "5 of 5 norms folded" in outcome.output
    assert f"{speed['speed_up']:.2f} times as fast" in outcome.output
    assert "DIFFERENT" not in outcome.output
    assert num_calls > 0  # in evaluation alone; folded, norms run only where the fold is checked and in the timing
    tested = [norm for norm in calls[num_calls:] if norm.weight.dtype == torch.float32]
    timed_and_checked = 5 * (1 + 4 * (5 + 1))  # one comparison in float32, and 6 rounds on each of 4 test batches
    assert len(tested) == timed_and_checked


def test_folded_checkpoint_loads_into_the_plain_class(folder: Path) -> None:
    outcome = run_here("scripts/fold.py", f"run={folder}")
    assert outcome.code == 0, outcome
    report = (folder / "checkpoints/folded.txt").read_text()
    assert "5 of 5 norms folded" in report
    assert report.strip() in outcome.output
    options = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "class_token": False, "fc_norm": False}
    sizes = {"img_size": 8, "in_chans": 1, "num_classes": 10, "global_pool": "avg"}
    plain = timm.create_model("vit_tiny_patch16_224", **options, **sizes)
    model = load_folded(folder, plain)
    assert not any(isinstance(module, nn.LayerNorm | UnifiedNorm) for module in model.modules())
    outside = folder / "elsewhere.ckpt"
    assert run_here("scripts/fold.py", f"run={folder}", f"output={outside}").code == 0
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_folded(outside, model)(images), load_folded(folder, plain)(images))


def test_onnx_and_eight_bits(folder: Path) -> None:
    outcome = run_here("scripts/export.py", f"run={folder}", "quantize=int8", "calibration=16")
    assert outcome.code == 0, outcome
    assert "operators of norms: none" in outcome.output
    content = json.loads((folder / "exports/folded_int8.onnx.json").read_text())
    assert content["difference"] < 1e-5
    assert content["operators_of_norms"] == {}
    assert content["quantization"] == "int8, ranges from 16 training examples"
    recorded = {k: v for k, v in read_result(folder / "result.json").metrics.items() if k.startswith("test/")}
    assert content["metrics"]["recorded"] == recorded
    assert content["metrics"]["float"] == pytest.approx(recorded, rel=1e-5)
    assert content["metrics"]["int8"]["test/loss"] == pytest.approx(recorded["test/loss"], rel=0.05)
    assert content["metrics"]["int8"]["test/loss"] != content["metrics"]["float"]["test/loss"]
    assert content["megabytes_int8"] < 0.5 * content["megabytes"]


def test_torch_export_with_its_norms(folder: Path) -> None:
    outcome = run_here("scripts/export.py", f"run={folder}", "format=torch_export", "fold=false")
    assert outcome.code == 0, outcome
    program = torch.export.load(folder / "exports/unfolded.pt2")
    (logits,) = (program.module()(torch.randn(5, 1, 8, 8)),)
    assert logits.shape == (5, 10)
    assert any("running_var" in name for name in program.state_dict)


@pytest.mark.parametrize(
    ("script", "arguments", "parts"),
    [
        ("export", ["format=onx"], ["format=onx must be one of onnx, torch_export"]),
        ("export", ["quantize=int4"], ["quantize=int4 must be int8 or null"]),
        ("export", ["format=torch_export", "quantize=int8"], ["quantize=int8 is for format=onnx"]),
        ("export", ["calibration=8"], ["calibration=8 is for quantize=int8"]),
        ("export", ["quantize=int8", "calibration=-1"], ["calibration=-1 must be a whole number"]),
        ("export", ["fold=maybe"], ["fold=maybe must be true or false"]),
        ("export", ["outptu=x"], ["'outptu'", "did you mean 'output'?"]),
        ("export", ["run=/nowhere"], ["/nowhere: no such folder"]),
        ("fold", ["run=/nowhere"], ["/nowhere: no such folder"]),
        ("fold", ["average_checkpoints=2"], ["average_checkpoints=2", "kept no epochs"]),
    ],
)
def test_mistakes(folder: Path, script: str, arguments: list[str], parts: list[str]) -> None:
    run_here(f"scripts/{script}.py", f"run={folder}", *arguments).check_error(*parts)
    assert not (folder / "exports").exists()


def test_what_cannot_be_exported_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10] if images.sum() > 0 else -images.flatten(1)[:, :10]

    monkeypatch.setattr("timm.models.vision_transformer.VisionTransformer.forward", decide)
    outcome = run_here("scripts/export.py", f"run={folder}", "fold=false")
    outcome.check_error("VisionTransformer of", "cannot be exported as onnx:", "data-dependent")
    assert not list((folder / "exports").iterdir())


def test_a_graph_that_computes_something_else_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("un.finished.export.measure_difference", lambda *outputs: 0.5)
    outcome = run_here("scripts/export.py", f"run={folder}", "format=torch_export")
    outcome.check_error("differs from PyTorch by 5.0e-01", "it is not kept")
    assert not list((folder / "exports").iterdir())


def test_missing_package(trained: Path) -> None:
    command = [sys.executable, "-c", MISSING, "onnxscript", "scripts/export.py", f"run={trained}"]
    outcome = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert outcome.returncode == 2, outcome
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: onnxscript, which belongs to the extra 'export', is not installed: pip install")
