"""Markdown, LaTeX and CSV say the same, and unknown cells are empty."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from tests.reports.runs import make_run
from un.command.errors import CONFIG_FOLDER
from un.reports.comparison import Cell, Comparison, Line
from un.reports.rendering import format_signed, render_csv, render_latex, render_markdown
from un.reports.specification import Published
from un.reports.story import tell
from un.reports.words import describe_setting, read_words

PLACE: dict[str, Any] = {"packages": {"torch": "2.0", "numpy": "2"}, "hardware": {"cpu": "a CPU", "gpu": []}}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    layernorm = [make_run(tmp_path, "norm=layernorm", seed, 50.0 + seed) for seed in (0, 1)]
    ours = [make_run(tmp_path, "norm=un", seed, 53.0 + 2 * seed, **PLACE) for seed in (0, 1)]
    diverged = [make_run(tmp_path, "norm=dyt", seed, None) for seed in (0, 1)]
    cells = {
        "LayerNorm": Cell(layernorm, layernorm, published=Published(50.25, "source a")),
        "UN & co": Cell(ours, layernorm, planned=3, published=Published(55, "source_b")),
        "DyT": Cell(diverged, layernorm),
        "MABN|x": Cell([], layernorm, planned=2),
    }
    rows = tuple(Line(label, "", (cell,)) for label, cell in cells.items())
    return Comparison("t", "A 5 % table", ("",), rows, setting="Small.")


def test_markdown(comparison: Comparison) -> None:
    lines = render_markdown(comparison).splitlines()
    assert lines[0] == "## A 5 % table"
    assert lines[2:8] == [
        "| test/acc1 | published | ours | runs | Δ published | Δ LayerNorm | verdict | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| LayerNorm | 50.25 [1] | 50.50 ± 0.71 † | 2 | +0.25 |  |  | 2.0 |",
        "| UN & co | 55 [2] | 54.00 ± 1.41 † | 2 of 3 | −1.00 | +3.50 [−2.85, +9.85] | not decided | 2.0 |",
        "| DyT |  | diverged | 2 (2 diverged) |  |  | diverges | 2.0 |",
        "| MABN\\|x |  |  | 0 of 2 |  |  |  |  |",
    ]
    notes = [line.rstrip() for line in lines[9:]]
    assert [notes[0], notes[1]] == ["Small.", "† our setting, not the paper's."]
    assert notes[-2:] == ["[1] source a.", "[2] source_b."]


def test_latex_is_escaped(comparison: Comparison) -> None:
    text = render_latex(comparison)
    assert r"\caption{A 5 \% table}" in text
    assert r"UN \& co & 55 [2] & 54.00 $\pm$ 1.41 $^\dagger$ & 2 of 3 & $-$1.00 & +3.50 [$-$2.85, +9.85]" in text
    assert r"source\_b." in text
    assert text.count("\\begin{") == text.count("\\end{")
    assert not any(character in text for character in "†Δ±−")


def test_csv_holds_the_numbers_unrounded(comparison: Comparison) -> None:
    frame = pd.read_csv(io.StringIO(render_csv([comparison, comparison]))).set_index("row")
    assert len(frame) == 8
    ours = frame.iloc[1]
    assert (ours["mean"], ours["std"], ours["n"], ours["planned"]) == (54.0, 2**0.5, 2, 3)
    assert (ours["to_published"], ours["to_layernorm"], ours["source"]) == (-1.0, 3.5, "source_b")
    assert (ours["values"], ours["verdict"], ours["setting"]) == ("0:53.0 1:55.0", "not decided", "norm=un")
    assert (ours["commit"], ours["versions"], ours["hardware"]) == ("0123456789ab", "torch=2.0", "a CPU")
    diverged = frame.iloc[2]
    assert (diverged["diverged"], diverged["values"]) == (2, "0: 1:")
    assert pd.isna(diverged["mean"])


def test_several_columns(tmp_path: Path) -> None:
    cells = (Cell([make_run(tmp_path)]), Cell([], planned=1, metric="test/bleu"))
    comparison = Comparison("t", "T", ("a", "b"), (Line("UN", "un", cells),), shows_marks=False)
    lines = render_markdown(comparison).splitlines()
    assert "†" not in render_markdown(comparison)  # where no paper is in sight
    assert lines[2] == "|  | a test/acc1: ours | a test/acc1: runs | b test/bleu: runs |"  # the minutes are in the CSV
    assert r"\multicolumn{2}{c}{a test/acc1}" in render_latex(comparison)


def test_a_rounded_zero_has_no_sign() -> None:
    assert [format_signed(value, 1) for value in (-0.04, 0.04, -0.06, 1.0)] == ["0.0", "0.0", "−0.1", "+1.0"]


def test_rows_without_runs_are_told_in_one_line(comparison: Comparison) -> None:
    command = "python scripts/reproduce.py table=t"
    text = render_markdown(replace(comparison, left_out=2, command=command))
    assert f"\nLeft out: 2 of 6 rows, which have no runs; `{command}` makes them.  \n" in text
    nothing = replace(comparison, rows=(), columns=(), left_out=6, command=command)
    assert render_markdown(nothing) == (
        f"## A 5 % table\n\nSmall.  \nLeft out: 6 of 6 rows, which have no runs; `{command}` makes them.\n"
    )
    assert render_latex(nothing) == ""


def test_the_story_is_the_verdicts(comparison: Comparison) -> None:
    lines = tell([comparison]).splitlines()
    assert lines[0] == "## What the tables say"
    assert lines[2].startswith("Against LayerNorm, in points. Δ LayerNorm: mean difference over paired seeds")
    assert "Verdict: level, the interval lies within ±0.5;" in lines[2]
    assert "Verdict" not in render_markdown(comparison, explain=False)
    assert lines[4] == (
        "- **A 5 % table** (2 seeds). Diverges: DyT 2 of 2 seeds. Not decided: UN & co +3.50 [−2.85, +9.85]."
    )
    assert tell([replace(comparison, rows=comparison.rows[:1])]) == ""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["norm=un", "norm.warmup_gradient=instant"], "UN; gradient statistic in warm-up: instant"),
        (["norm.filtration=True", "norm.filtered_running=freeze"],
         "filtration: on; running moment after a filtered call: frozen"),
        (["surgery.pad_mask=false", "norm=new_norm"], "new_norm; padding: in the statistics"),
        (["model.some_depth=first_one"], "model.some_depth: first one"),
        ([], "as configured"),
    ],
)  # fmt: skip
def test_settings_in_words(overrides: list[str], words: str) -> None:
    assert describe_setting(overrides) == words


def test_every_switch_has_words() -> None:
    switches = OmegaConf.load(CONFIG_FOLDER / "norm/switches/official.yaml")
    assert set(map(str, switches)) <= read_words()["options"].keys()
