"""The training benchmark on tiny models: what it builds, what it writes, and the table that this fills."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from un.norms import UnifiedNorm
from un.reports.efficiency import compare_measurements
from un.reports.measurements import Setting, find_measurements, plan_settings
from un.reports.rendering import render_markdown
from un.sweeps.table_plans import read_table

pytestmark = pytest.mark.usefixtures("find_scripts")
OPTIONS = argparse.Namespace(
    device="cpu", rounds=2, warmup=1, threads=1, length=3, seconds=math.inf, budget=math.inf, again=False
)
OPTIONS.models, OPTIONS.engines, OPTIONS.dtypes, OPTIONS.batches = ["vit_small"], ["eager"], None, [2]


class TinyClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 112, 112)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.cut(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("un.vision.models.create_model", lambda name: TinyClassifier())


def test_steps_are_measured_and_fill_their_table(tiny: None, tmp_path: Path) -> None:
    from benchmarks.training import measure

    OPTIONS.output = tmp_path
    rows = measure(OPTIONS)
    assert [row["norm"] for row in rows] == ["layernorm", "un", "batchnorm"]
    assert all(row["ms"] > 0 and row["peak_megabytes"] > 0 for row in rows)
    (found,), problems = find_measurements([tmp_path])
    assert (found.file, problems) == ("training-vit_small-eager-cpu-float32-batch=2.json", [])
    assert found.get_gain("un_time") == pytest.approx(rows[1]["ms"] / rows[0]["ms"])
    text = render_markdown(compare_measurements(read_table("training_step"), [found]))
    assert f"| ViT-S, eager, batch 2, {found.place} | {found.get_gain('un_time'):.2f}" in text
    assert "Left out: 1 of 2 rows" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_trains_with_every_norm(tiny: None, dtype: str) -> None:
    from benchmarks.training import NORMS, build_model, draw_batch, make_step

    setting = Setting("vit_small", "eager", "cpu", dtype, 2, benchmark="training")
    for norm in NORMS:
        model = build_model("vit_small", norm)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        make_step(model, model, draw_batch(setting, 3), setting)()
        assert all(not torch.equal(before[name], value) for name, value in model.named_parameters())
        if norm == "un":
            assert isinstance(model.norm, UnifiedNorm)
            assert model.norm.iters == 1


def test_translation_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from benchmarks import training

    from un.translation import transformer

    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}
    monkeypatch.setattr(transformer, "build_transformer", partial(transformer.build_transformer, **small))
    monkeypatch.setattr(training, "NUM_WORDS", 20)
    setting = Setting("iwslt_transformer", "eager", "cpu", "float32", 2, benchmark="training")
    assert set(training.measure_steps(setting, OPTIONS)["arms"]) == {"layernorm", "un", "batchnorm"}


def test_the_gpu_is_measured_with_the_most_telling_first() -> None:
    first, *_, last = plan_settings(["vit_small", "iwslt_transformer"], "cuda", "training")
    assert (first.engine, last.engine) == ("eager", "compile")
    assert first.file == "training-vit_small-eager-cuda-bfloat16-batch=128.json"
