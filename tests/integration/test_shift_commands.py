"""A finished run is tested under shift: noisier images, longer sentences, other text."""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.commands import run_here
from tests.integration.texts import write_text
from tests.reports.runs import make_run


def test_images(finished: Path) -> None:
    before = (finished / "result.json").read_bytes()
    outcome = run_here("eval.py", f"run={finished}", "shift=[noise,dark]")
    assert outcome.code == 0, outcome
    assert "median loss" in outcome.output
    first = json.loads((finished / "shift.json").read_text())
    assert [*first] == ["noise", "dark"]
    assert first["noise"]["losses"]["mean"] == pytest.approx(first["noise"]["metrics"]["test/loss"], rel=1e-4)
    assert first["noise"]["metrics"]["test/loss"] != first["dark"]["metrics"]["test/loss"]
    outcome = run_here("eval.py", f"run={finished}", "shift=images", "fold=true")
    assert outcome.code == 0, outcome
    second = json.loads((finished / "shift.json").read_text())
    assert [*second] == ["noise", "dark", "low_contrast"]
    assert second["dark"]["folded"]
    assert second["dark"]["changes"] == {}
    assert second["dark"]["metrics"] == pytest.approx(first["dark"]["metrics"], rel=1e-4)
    assert (finished / "result.json").read_bytes() == before
    assert run_here("eval.py", f"run={finished}", "shift=dark", "data.path=sklearn-digits").code == 0
    third = json.loads((finished / "shift.json").read_text())
    assert third["dark"]["changes"] == {"data.path": "sklearn-digits"}  # the run's were generated


def test_text(translator: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(translator[0], tmp_path / "run"))
    command = ("eval.py", f"run={run}", "shift=[text,tatoeba]")
    run_here(*command).check_error("shift.tatoeba.data.path is missing: give shift.tatoeba.data.path=<value>")
    other = write_text(tmp_path / "other", "Katze")
    outcome = run_here(*command, f"shift.tatoeba.data.path={other}", "shift.tatoeba.data.limit=4")
    assert outcome.code == 0, outcome
    found = json.loads((run / "shift.json").read_text())
    counts = {name: entry["losses"]["examples"] for name, entry in found.items()}
    assert counts == {"joined": 3, "typos": 6, "tatoeba": 4}
    assert (run / "evaluation/joined/translations/test.tsv").is_file()
    for entry in found.values():
        assert entry["metrics"]["test/loss"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shift=joined"], "shift=joined is for translation, and {run} is of vision"),
        (["shift=darkness"], "darkness"),
        (["shift=dark", "+shift.dark.data.num_classes=3"], "data.num_classes=3 comes too late"),
        (["shift=dark", "+shift.dark.data.nothing=3"], "nothing"),
        (["against={run}"], "against={run} needs fold=true"),
    ],
)
def test_mistakes(trained: Path, arguments: list[str], message: str) -> None:
    outcome = run_here("eval.py", f"run={trained}", *(argument.format(run=trained) for argument in arguments))
    outcome.check_error(message.format(run=trained))
    assert not (trained / "shift.json").exists()


def test_a_table_evaluates_what_it_lacks(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, f"norm={norm}", 0, experiment="multi30k_small") for norm in ("layernorm", "un_recommended")
    ]
    command = ("scripts/reproduce.py", "table=retrofit", "experiment=multi30k_small", "seed=0")
    outcome = run_here(
        *command, f"paths.runs={tmp_path}", "shift.tatoeba.data.path=/sentences", "data.path=/pairs", "--dry-run"
    )
    assert outcome.code == 0, outcome
    listed = [line.partition("eval.py ")[2] for line in outcome.output.splitlines() if line.startswith("to evaluate")]
    layernorm, un = (run.folder for run in runs)
    shift = "data.path=/pairs 'shift=[tatoeba]' shift.tatoeba.data.path=/sentences"
    speed = f"run={un} data.path=/pairs fold=true against={layernorm}"
    assert listed == [f"run={layernorm} {shift}", f"run={un} {shift}", speed]
