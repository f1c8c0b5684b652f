"""`scripts/reproduce.py` and `scripts/report.py` as typed."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.integration.commands import FAST, run_here
from tests.reports.runs import make_measurement, make_run
from un.reports.measurements import FOLDERS, MODELS, Setting, plan_settings
from un.sweeps.launch import expand

REPRODUCE, REPORT = "scripts/reproduce.py", "scripts/report.py"


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_from_nothing_to_the_table(tmp_path: Path) -> None:
    setting = (f"paths.runs={tmp_path / 'runs'}", "seed=0", "norm.centering=none,batch", "model.depth=1")
    command = (REPRODUCE, "ablation=un_centering", *FAST, *setting)
    listed = run_here(*command, "--dry-run")
    assert listed.code == 0, listed
    assert "2 runs, 0 done" in listed.output
    assert not (tmp_path / "runs").exists()
    output = ("--output", str(tmp_path / "out"))
    outcome = run_here(*command, *output)
    assert outcome.code == 0, outcome
    assert "| mean subtracted: the batch's |" in outcome.output
    assert list_names(tmp_path / "out") == {f"un_centering.{end}" for end in ("md", "tex", "csv")}
    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(results) == 2
    assert "2 runs, 2 done" in run_here(*command, "--dry-run").output
    once_more = run_here(*command, *output)
    assert once_more.code == 0, once_more
    assert results == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_estimates_by_earlier_runs(tmp_path: Path) -> None:
    make_run(tmp_path, "norm=un", 0, wall_time_seconds=3600.0)
    outcome = run_here(REPRODUCE, "table=norms", "experiment=digits_vit", f"paths.runs={tmp_path}", "--dry-run")
    assert "45 runs, 1 done" in outcome.output
    assert "digits_vit: 44 to run, time by earlier runs: about 44.0 hours" in outcome.output


def test_what_missing_runs_need_and_how_to_start_them(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    command = (
        REPRODUCE,
        "ablation=un_centering",
        "experiment=iwslt14_de_en",
        f"data.path={missing}",
        "seed=0",
        "trainer=gpu",
    )
    outcome = run_here(*command, f"paths.runs={tmp_path}", "norm.centering=none,batch", "dry_run=true", "--commands")
    assert "2 runs, 0 done" in outcome.output
    assert "iwslt14_de_en: 2 to run, time by the recipe: some hours each" in outcome.output
    assert f"iwslt14_de_en: data.path={missing} is no folder here" in outcome.output
    commands = [line for line in outcome.output.splitlines() if line.startswith("python train.py -m ")]
    folders = {run.folder for line in commands for run in expand(shlex.split(line)[3:])}
    listed = {line.split(maxsplit=1)[1] for line in outcome.output.splitlines() if line.startswith("missing ")}
    assert {str(folder) for folder in folders} == listed
    assert len(listed) == 2


def test_measures_what_a_table_of_measurements_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = plan_settings(MODELS, "cpu")

    def make(setting: Setting) -> None:
        folder = tmp_path / FOLDERS["inference"]
        make_measurement(folder, setting.model, setting.engine, setting.batch, dtype=setting.dtype)

    for setting in settings[1:-1]:
        make(setting)
    command = (REPRODUCE, "table=efficiency", f"paths.runs={tmp_path}")
    started: list[list[str]] = []

    def measure(arguments: list[str], **_: object) -> None:
        started.append(arguments[2:])
        if "swin_tiny" in arguments:  # the other fails
            make(settings[0])

    monkeypatch.setattr(subprocess, "run", measure)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    listed = run_here(*command, "--dry-run")
    assert (listed.code, started) == (0, [])
    outcome = run_here(*command, "--output", str(tmp_path / "out"))
    assert f"{len(settings)} measurements, {len(settings) - 2} done before" in listed.output
    assert outcome.code == 2
    assert len(started) == 2
    assert f"missing   python scripts/benchmark.py {' '.join(started[1])}" in listed.output
    assert "| Swin-T, eager, batch 1, a CPU (2 threads) | 31.2 [1] | 31.2 [1] | 20.0 † |" in outcome.output
    assert list_names(tmp_path / "out") == {f"efficiency.{end}" for end in ("md", "tex", "csv")}
    assert started[1] == settings[-1].list_arguments(tmp_path / FOLDERS["inference"])
    options = ["inference", "--models", "iwslt_encoder", "--engines", "onnxruntime", "--device", "cpu"]
    assert started[1][:7] == options


def test_report(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", name, seed) for name in ("norm=layernorm", "norm=un") for seed in (0, 1)]
    (runs[0].folder.parent / "seed=7").mkdir()
    (runs[0].folder.parent / "seed=7/result.json").write_text("{")
    outcome = run_here(REPORT, str(tmp_path / "runs"), "--output", str(tmp_path / "out"))
    assert outcome.code == 0, outcome
    assert "seed=7/result.json" in outcome.errors
    assert list_names(tmp_path / "out") == {"index.html", "RESULTS.md", "tables.tex", "results.csv"}
    text = (tmp_path / "out/RESULTS.md").read_text()
    assert "## Norms on equal terms" in text
    assert "\n## What the tables say\n" in text
    assert "digits_vit" not in text  # every setting stands in a table


def test_update_fills_the_blocks_and_nothing_else(tmp_path: Path) -> None:
    for norm, value in (("norm=un", 51.25), ("norm=layernorm", 50.0), ("norm=dyt", 40.0)):
        make_run(tmp_path / "runs", norm, 0, value)
    page = tmp_path / "README.md"
    block = "<!-- results{} -->\nof yore\n<!-- end of results -->\n"
    parts = ["", " tables=norms norms=un,layernorm", " tables=norms,un_window show=all", " tables=norms show=sentences"]
    parts[3] += " figures=figures/un_cost.png,figures/gone.png"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/un_cost.png").touch()
    page.write_text("before\n" + "between\n".join(map(block.format, parts)) + "after \\1\n")
    for _ in range(2):
        assert run_here(REPORT, str(tmp_path / "runs"), "--update", str(page)).code == 0
        text = page.read_text()
        assert text.startswith("before\n<!-- results -->\n")
        assert text.endswith("<!-- end of results -->\nafter \\1\n")
        assert "of yore" not in text
        whole, norms, both, sentences = text.split("between\n")
        for shown, dyt, verdicts in ((whole, 1, 0), (norms, 0, 0), (both, 1, 1), (sentences, 0, 1)):
            assert shown.count("| DyT | 40.00 |") == dyt
            assert shown.count("- **Norms on equal terms, digits** (1 seed). Not decided: ") == verdicts
            assert shown.count("| UN | 51.25 |") == (0 if shown is sentences else 1)
        assert "Not run yet: `python scripts/reproduce.py table=un_window`." in both
        assert text.count("Verdict: level") == 1  # explained once
        assert "![un cost](figures/un_cost.png)" in sentences
        assert "Not drawn yet: `figures/gone.png`" in sentences
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("nothing", "has no results block"),
        ("<!-- results tables=x -->\n<!-- end of results -->", "there is no table x; there are "),
        ("<!-- results table=norms -->\n<!-- end of results -->", "no table=; allowed: tables, norms, show, figures"),
        (
            "<!-- results show=words -->\n<!-- end of results -->",
            "show=words; allowed: tables, sentences, all, figures",
        ),
    ],
)
def test_a_page_that_cannot_be_filled_stays_as_it_is(block: str, problem: str, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    page = tmp_path / "README.md"
    page.write_text(block)
    run_here(REPORT, str(tmp_path / "runs"), "--update", str(page)).check_error(problem)
    assert page.read_text() == block


def test_records_render_what_their_runs_render(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path / "runs", "norm=layernorm", seed, 50.0 + seed)
        make_run(tmp_path / "runs", "norm=un", seed, 52.0 if seed else None)
    assert run_here(REPORT, str(tmp_path / "runs"), "--keep", str(tmp_path / "kept")).code == 0
    assert {path.name for path in (tmp_path / "kept").rglob("*.*")} == {"result.json"}
    for name in ("runs", "kept"):
        assert run_here(REPORT, str(tmp_path / name), "--output", str(tmp_path / f"{name}_out")).code == 0
    for name in ("RESULTS.md", "results.csv", "tables.tex"):
        assert (tmp_path / "kept_out" / name).read_text() == (tmp_path / "runs_out" / name).read_text()
