"""Measurements of inference: what files say, what is planned, and the table that they fill."""

from pathlib import Path

import pytest

from tests.reports.runs import make_measurement
from un.reports.efficiency import compare_measurements
from un.reports.measurements import find_measurements, plan_settings
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
    assert "a-batch=1.json is not a measurement of inference: Invalid JSON" in problems[0]
    assert problems[1].endswith("engine is missing")


def test_nothing_is_planned_that_cannot_be_measured() -> None:
    planned = plan_settings(["vit_small", "iwslt_beam5"], "cuda")
    assert len(planned) == len(set(planned)) == 3 * len(BATCHES["cuda"])
    assert {setting.engine for setting in planned} == {"eager", "compile"}
    assert {setting.engine for setting in planned if setting.model == "iwslt_beam5"} == {"eager"}


def test_every_measurement_is_a_row_beside_what_was_published(tmp_path: Path) -> None:
    found = [make_measurement(tmp_path, batch=1), make_measurement(tmp_path, batch=8, megabytes=None)]
    found += [make_measurement(tmp_path, "t2t_vit_14")]  # which the table does not ask for
    text = render_markdown(compare_measurements(TABLE, found))
    assert "| Swin, eager, batch 1, a CPU (2 threads) | 30 [1] | 20.0 † | −10.0 |  | 20.0 † |" in text
    assert "| Swin, eager, batch 8, a CPU (2 threads) | 30 [1] | 20.0 † | −10.0 |  |  |" in text
    assert "| ViT | 31 [2] |  |  | 18 [2] |  |" in text
    assert "2 of 12 on cpu, 0 of 12 on cuda; scripts/reproduce.py table=gains" in text
    assert "[1] a survey.  \n[2] an abstract." in text
