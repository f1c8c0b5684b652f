"""The inference benchmark on tiny models: arms that agree are timed, others are not; results pile up in a folder."""

import argparse
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from un.reports.result import write_json

pytestmark = pytest.mark.usefixtures("find_scripts")
ARMS = ["layernorm", "layernorm_elementary", "un", "un_folded", "identity"]
IMAGES = {"images": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
OPTIONS = argparse.Namespace(
    device="cpu", dtype="float32", rounds=3, warmup=1, threads=1, length=4, steps=4, folder=None, table=True
)
build_vit = partial(
    timm.create_model,
    "vit_tiny_patch16_224",
    **{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1, "num_classes": 3},
)


def make_workload():
    from benchmarks.inference_models import Workload, build_arms

    models = build_arms(build_vit, tuple(IMAGES.values()))

    def run(model: nn.Module) -> torch.Tensor:
        return model(*IMAGES.values())

    return Workload(models, IMAGES, {"images": {0: "batch"}}, run, lambda arm: run(models[arm]), ("images", 2))


def test_arms() -> None:
    models = make_workload().models
    assert list(models) == ARMS
    kinds = {arm: type(model.blocks[0].norm1).__name__ for arm, model in models.items()}
    assert kinds == dict(
        zip(ARMS, ("LayerNorm", "ElementaryLayerNorm", "UnifiedNorm", "Identity", "Identity"), strict=True)
    )
    with torch.no_grad():
        outputs = {arm: model(*IMAGES.values()) for arm, model in models.items()}
    torch.testing.assert_close(outputs["un"], outputs["un_folded"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs["un"], outputs["identity"], rtol=1e-2)


def test_elementary_layernorm_is_layernorm() -> None:
    from benchmarks.inference_models import ElementaryLayerNorm

    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ElementaryLayerNorm(8)(x), nn.LayerNorm(8)(x), rtol=1e-4, atol=1e-5)


def test_measuring_piece_by_piece(tmp_path: Path) -> None:
    from benchmarks.inference import measure, measure_engine, show

    OPTIONS.folder = tmp_path
    with pytest.raises(ValueError, match="holds no results"):
        measure(OPTIONS)
    workload = make_workload()
    for engine in ("eager", "onnxruntime"):
        result = measure_engine("vit_small", engine, 2, workload, OPTIONS)
        write_json(result, tmp_path / f"vit_small-{engine}-cpu-float32-batch=2.json")
    rows = measure(OPTIONS)
    assert [row["arm"] for row in rows] == 2 * ARMS
    for row in rows:
        assert row["seconds_p5"] <= row["seconds"] <= row["seconds_p95"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert (row["peak_megabytes"] is None) == (row["engine"] == "onnxruntime")
    peaks = {row["arm"]: row["peak_megabytes"] for row in rows[:5]}
    assert peaks["un_folded"] >= 2 * 4 * 64 * 4 / 1e6  # the hidden layer of 2 images with 4 tokens
    graphs = {row["arm"]: row["operators"] for row in rows[5:]}
    assert graphs["un_folded"] == graphs["identity"]
    assert "LayerNormalization" in graphs["layernorm"]
    show(rows, OPTIONS)
    assert (tmp_path / "inference.png").stat().st_size > 10_000


def test_table_and_its_ratios() -> None:
    from benchmarks.inference_results import render_table

    times = dict(zip(ARMS, (0.01, 0.02, 0.012, 0.009, 0.008), strict=True))
    common = {"model": "swin_tiny", "engine": "eager", "device": "cpu", "dtype": "float32", "batch": 8}
    rows = [
        {**common, "arm": arm, "seconds": t, "ratio_to_layernorm": t / 0.01, "ratio_to_identity": t / 0.008}
        for arm, t in times.items()
    ]
    assert (
        render_table(rows).splitlines()[-1]
        == "| swin_tiny | eager | 8 | 10 | 20 | 12 | 9 | 8 | 0.900 | 0.800 | 1.125 |"
    )


def test_arms_that_disagree_are_not_timed() -> None:
    from benchmarks.inference import measure_engine

    workload = make_workload()
    with torch.no_grad():
        workload.models["un_folded"].head.bias += 0.1
    with pytest.raises(ValueError, match="outputs of folded and unfolded differ by"):
        measure_engine("vit_small", "eager", 2, workload, OPTIONS)


@pytest.mark.parametrize(("name", "steps"), [("iwslt_encoder", 2), ("iwslt_beam5", 2)])
def test_translation_arms_agree(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import inference_models
    from benchmarks.inference import measure_engine

    from un.translation import transformer

    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}
    real = transformer.build_transformer
    monkeypatch.setattr(transformer, "build_transformer", partial(real, **small))
    monkeypatch.setattr(inference_models, "NUM_WORDS", 20)
    options = argparse.Namespace(**{**vars(OPTIONS), "steps": steps, "rounds": 1, "warmup": 0})
    workload = inference_models.build_workload(name, 2, options, torch.device("cpu"))
    result = measure_engine(name, "eager", 2, workload, options)
    assert result["checks"]["differences"]["folded and unfolded"] < 1e-5
    assert result["checks"]["identity_finite"]
    count = {"iwslt_encoder": 2 * options.length, "iwslt_beam5": 2 * steps}[name]
    for arm in result["arms"].values():
        assert arm["tokens_per_second"] == pytest.approx(count / arm["seconds"])
