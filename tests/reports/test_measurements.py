"""Measurements of inference: what files say, what is planned, and the table that they fill."""

from pathlib import Path

import pytest

from tests.reports.runs import make_measurement
from un.reports.efficiency import compare_measurements
from un.reports.measurements import Setting, find_measurements, plan_settings
from un.reports.rendering import render_markdown
from un.reports.specification import parse_table

TABLE = parse_table(
    "gains",
    {
        "title": "Gains",
        "digits": 1,
        "columns": [{"metric": "speed"}, {"metric": "memory"}],
        "rows": [
            {"label": "Swin", "model": "swin_tiny", "published": [30, None], "source": "a survey"},
            {"label": "ViT", "model": "vit_small", "published": [31, 18], "source": "an abstract"},
        ],
    },
)


def test_gains_are_ratios_of_calls_per_second_and_of_memory(tmp_path: Path) -> None:
    measurement = make_measurement(tmp_path, seconds=(0.12, 0.1), megabytes=(10.0, 8.0))
    assert measurement.get_gain("speed") == pytest.approx(20)
    assert measurement.get_gain("memory") == pytest.approx(20)
    assert make_measurement(tmp_path, engine="onnxruntime", megabytes=None).get_gain("memory") is None


def test_files_are_found_and_broken_ones_named(tmp_path: Path) -> None:
    good = make_measurement(tmp_path / "elsewhere/below", "vit_small")
    first = make_measurement(tmp_path / "elsewhere", "swin_tiny", device="cuda", batch=64)
    assert first.place == "a GPU"
    (tmp_path / "a-batch=1.json").write_text("{")
    (tmp_path / "b-batch=1.json").write_text('{"model": "swin_tiny"}')
    found, problems = find_measurements([tmp_path, tmp_path / "elsewhere/below"])
    assert found == [first, good]
    assert len(problems) == 2
    assert "a-batch=1.json is not a measurement: Invalid JSON" in problems[0]
    assert problems[1].endswith("engine is missing")


def test_nothing_is_planned_that_cannot_be_measured_and_the_most_telling_comes_first() -> None:
    planned = plan_settings(["vit_small", "iwslt_beam5"], "cuda")
    assert len(planned) == len(set(planned)) == 9 * (2 + 1) + 2
    assert {setting.engine for setting in planned} == {"eager", "cuda_graph", "compile"}
    assert {setting.engine for setting in planned if setting.model == "iwslt_beam5"} == {"eager"}
    assert planned[0] == Setting("vit_small", "eager", "cuda", "float32", 64)
    assert planned[-1].engine == "compile"
    on_cpu = plan_settings(["vit_small"], "cpu")
    assert {setting.engine for setting in on_cpu if setting.dtype == "int8"} == {"onnxruntime"}
    assert {setting.benchmark for setting in plan_settings(["vit_small"], "cpu", "training")} == {"training"}


def test_every_measurement_is_a_row_beside_what_was_published(tmp_path: Path) -> None:
    found = [make_measurement(tmp_path, batch=1), make_measurement(tmp_path, batch=8, megabytes=None)]
    found += [make_measurement(tmp_path, "t2t_vit_14")]  # which the table does not ask for
    text = render_markdown(compare_measurements(TABLE, found))
    assert "| Swin, eager, batch 1, a CPU (2 threads) | 30 [1] | 20.0 † | −10.0 |  | 20.0 † |" in text
    assert "| Swin, eager, batch 8, a CPU (2 threads) | 30 [1] | 20.0 † | −10.0 |  |  |" in text
    assert "| ViT | 31 [2] |  |  | 18 [2] |  |" in text
    assert "2 of 16 on cpu, 0 of 38 on cuda; scripts/reproduce.py table=gains" in text
    assert "[1] a survey.  \n[2] an abstract." in text


def test_a_sentence_says_which_layernorm_a_published_figure_takes(tmp_path: Path) -> None:
    arms = {"layernorm_elementary": 0.14, "identity": 0.095}
    found = [
        make_measurement(tmp_path, device="cuda", more=arms),
        make_measurement(tmp_path, device="cuda", batch=64, seconds=(0.103, 0.1), more=arms),
    ]
    text = " ".join(compare_measurements(TABLE, found).setting.split())
    assert (
        "Swin on a GPU: 20.0 % over the fused LayerNorm at the most (eager, batch 1; the published 30 % or more in 0 "
        "of 2 settings); 40.0 % over LayerNorm in elementary operations at the most (eager, batch 1; the published "
        "30 % or more in 2 of 2 settings); no norms at all are at most 26.3 % faster than the fused LayerNorm." in text
    )


def test_what_arms_gain(tmp_path: Path) -> None:
    one = make_measurement(tmp_path, more={"identity": 0.08})
    assert one.get_gain("speed_limit") == pytest.approx(50)
    assert one.get_gain("speed_elementary") is None
    trained = make_measurement(tmp_path, "vit_small", benchmark="training", more={"un": 0.18, "batchnorm": 0.06})
    assert trained.get_gain("un_time") == pytest.approx(1.5)
    assert trained.get_gain("batchnorm_time") == pytest.approx(0.5)
    assert trained.get_gain("un_memory") == pytest.approx(1.0)
