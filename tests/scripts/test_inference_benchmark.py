"""The inference benchmark on tiny models: arms that agree are timed, others are not; results pile up in a folder."""

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from un.reports.measurements import Setting, read_measurement

pytestmark = pytest.mark.usefixtures("find_scripts")
ARMS = ["layernorm", "layernorm_elementary", "un", "un_folded", "identity"]
INPUTS = {"x": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))}
OPTIONS = argparse.Namespace(
    device="cpu", rounds=3, warmup=1, threads=1, length=4, steps=4, seconds=math.inf, budget=math.inf, again=False
)
EAGER = Setting("vit_small", "eager", "cpu", "float32", 2)


@pytest.fixture
def workload() -> Any:
    from benchmarks.inference_models import Workload, build_arms

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3))

    def run(model: nn.Module) -> torch.Tensor:
        return model(*INPUTS.values())

    models = build_arms(build, tuple(INPUTS.values()))
    return Workload(models, INPUTS, {"x": {0: "batch"}}, run, lambda arm: run(models[arm]), ("images", 2))


def test_arms(workload: Any) -> None:
    kinds = {arm: type(model[1]).__name__ for arm, model in workload.models.items()}
    expected = ("LayerNorm", "ElementaryLayerNorm", "UnifiedNorm", "Identity", "Identity")
    assert kinds == dict(zip(ARMS, expected, strict=True))
    with torch.no_grad():
        outputs = {arm: workload.run(model) for arm, model in workload.models.items()}
    torch.testing.assert_close(outputs["layernorm"], outputs["layernorm_elementary"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["un"], outputs["un_folded"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs["un"], outputs["identity"], rtol=1e-2)


def measure_here(workload: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, Any]]:
    """Measures the tiny model wherever a model is asked for."""
    from benchmarks import inference

    monkeypatch.setattr(inference, "build_workload", lambda *_: workload)
    plain = {"models": ["vit_small"], "engines": ["eager"], "dtypes": None, "batches": [1, 2], "table": False}
    return inference.measure(argparse.Namespace(**{**vars(OPTIONS), "output": folder, **plain, **options}))


def test_measuring_piece_by_piece(workload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="holds no results"):
        measure_here(workload, tmp_path, monkeypatch, table=True)
    measure_here(workload, tmp_path, monkeypatch, batches=[2])
    first = (tmp_path / EAGER.file).read_text()
    rows = measure_here(workload, tmp_path, monkeypatch)
    assert (tmp_path / EAGER.file).read_text() == first, "what is there is measured again"
    assert [row["arm"] for row in rows] == 2 * ARMS
    for row in rows:
        assert row["seconds_p5"] <= row["seconds"] <= row["seconds_p95"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    peaks = {row["arm"]: row["peak_megabytes"] for row in rows[:5]}
    assert peaks["un_folded"] >= 2 * 5 * 16 * 4 / 1e6  # the hidden layer
    assert read_measurement(tmp_path / EAGER.file).get_gain("speed_limit") is not None


def test_what_fails_or_is_not_reached_does_not_stop_the_rest(
    workload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import engines

    def run_out_of_memory(call: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 MiB")

    with monkeypatch.context() as patched:
        patched.setattr(engines, "measure_peak", run_out_of_memory)
        with pytest.raises(ValueError, match="holds no results"):
            measure_here(workload, tmp_path, patched, batches=[2])
    reason = json.loads((tmp_path / EAGER.file).read_text())["failure"]
    assert reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 MiB"
    with pytest.raises(ValueError, match=rf"{EAGER.file}: not measured, OutOfMemoryError"):
        read_measurement(tmp_path / EAGER.file)
    rows = measure_here(workload, tmp_path, monkeypatch, batches=[2])
    assert len(rows) == len(ARMS), "what failed is not measured again"
    with pytest.raises(ValueError, match="holds no results"):
        measure_here(workload, tmp_path / "late", monkeypatch, budget=1e-9)
    assert f"{EAGER.file}: not reached within --budget" in capsys.readouterr().err


def test_half_precision_keeps_statistics_in_float32(monkeypatch: pytest.MonkeyPatch, workload: Any) -> None:
    from benchmarks import inference_models
    from benchmarks.inference import measure_workload

    monkeypatch.setattr(inference_models, "_build_once", lambda name: workload.models)
    half = inference_models.build_workload("vit_small", 2, "bfloat16", OPTIONS)
    assert half.models["un"][1].running_var.dtype == torch.float32
    assert half.models["un"][1].weight.dtype == half.inputs["images"].dtype == torch.bfloat16
    small = {name: tensor.bfloat16() for name, tensor in INPUTS.items()}
    workload = workload.__class__(
        half.models,
        small,
        None,
        lambda model: model(small["x"]),
        lambda arm: half.models[arm](small["x"]),
        ("images", 2),
    )
    found = measure_workload(Setting("vit_small", "eager", "cpu", "bfloat16", 2), workload, OPTIONS)
    assert 0 < found["checks"]["differences"]["folded and unfolded"] < 0.05


@pytest.mark.slow  # exports the graph of every arm
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_graphs_are_measured_with_their_operators(workload: Any, dtype: str) -> None:
    from benchmarks.inference import measure_workload

    arms = measure_workload(Setting("vit_small", "onnxruntime", "cpu", dtype, 2), workload, OPTIONS)["arms"]
    assert all(arm["peak_megabytes"] is None for arm in arms.values())
    assert arms["un_folded"]["operators"] == arms["identity"]["operators"]
    assert "LayerNormalization" in arms["layernorm"]["operators"]
    assert ("MatMulInteger" in arms["layernorm"]["operators"]) == (dtype == "int8")


def test_table_and_its_ratios() -> None:
    from benchmarks.inference import render_table

    times = dict(zip(ARMS, (0.01, 0.02, 0.012, 0.009, 0.008), strict=True))
    common = {"model": "swin_tiny", "engine": "eager", "device": "cpu", "dtype": "float32", "batch": 8}
    rows = [
        {**common, "arm": arm, "seconds": t, "ratio_to_layernorm": t / 0.01, "ratio_to_identity": t / 0.008}
        for arm, t in times.items()
    ]
    expected = "| swin_tiny | eager | cpu | float32 | 8 | 10 | 20 | 12 | 9 | 8 | 0.900 | 0.800 | 1.125 |"
    assert render_table(rows).splitlines()[-1] == expected


def test_arms_that_disagree_are_not_timed(workload: Any) -> None:
    from benchmarks.inference import measure_workload

    with torch.no_grad():
        workload.models["un_folded"][2].bias += 0.1
    with pytest.raises(ValueError, match="outputs of folded and unfolded differ by"):
        measure_workload(EAGER, workload, OPTIONS)


@pytest.mark.parametrize("name", ["iwslt_encoder", "iwslt_beam5"])
def test_translation_arms_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import inference_models
    from benchmarks.inference import measure_workload

    from un.translation import transformer

    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}
    real = transformer.build_transformer
    monkeypatch.setattr(transformer, "build_transformer", partial(real, **small))
    monkeypatch.setattr(inference_models, "NUM_WORDS", 20)
    inference_models._build_once.cache_clear()
    options = argparse.Namespace(**{**vars(OPTIONS), "steps": 2, "rounds": 1, "warmup": 0})
    workload = inference_models.build_workload(name, 2, "float32", options)
    result = measure_workload(Setting(name, "eager", "cpu", "float32", 2), workload, options)
    assert result["checks"]["differences"]["folded and unfolded"] < 1e-5
    assert result["checks"]["identity_finite"]
    count = {"iwslt_encoder": 2 * options.length, "iwslt_beam5": 2 * 2}[name]
    for arm in result["arms"].values():
        assert arm["tokens_per_second"] == pytest.approx(count / arm["seconds"])
