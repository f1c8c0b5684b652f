"""Which translators a GPU trains, and what they are compared with."""

from argparse import Namespace
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("find_scripts")
OPTIONS = {"device": "cuda", "norms": ["layernorm", "un"], "seeds": [0, 1], "full": ["un"]}


def test_the_first_seed_of_everything_comes_first() -> None:
    from benchmarks.translation_runs import FULL, MIXED, Job, plan_jobs

    jobs = plan_jobs(Namespace(**OPTIONS))
    assert jobs[:3] == [Job("layernorm", MIXED, 0), Job("un", MIXED, 0), Job("un", FULL, 0)]
    assert jobs[3:] == [Job("layernorm", MIXED, 1), Job("un", MIXED, 1)]
    assert plan_jobs(Namespace(**OPTIONS | {"device": "cpu"})) == jobs[:1]


def test_the_table_compares_with_the_runs_of_the_cpu() -> None:
    from benchmarks.translation_runs import Job, read_cpu_runs, render

    known = read_cpu_runs("layernorm")
    assert known["0"] == pytest.approx(37.74, abs=0.01)
    row = {**Job("layernorm", "16-mixed", 1)._asdict(), "status": "finished", "cpu_bleu": {"0": 37.0, "1": 38.0}}
    line = render([{**row, "bleu": 37.25, "minutes": 1.5, "samples_per_second": 9000.4}]).splitlines()[-1]
    assert line == "| layernorm | 16-mixed | 1 | 37.25 | 0: 37.00, 1: 38.00 | −0.25 | 1.50 | 9000 |"


def test_runs_past_the_budget_are_stopped_and_those_with_a_result_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import translation_runs
    from benchmarks.translation_runs import Job, train

    finished, slow = Job("un", "16-mixed", 0), Job("un", "16-mixed", 1)
    options = Namespace(jobs=2, budget=4, runs=tmp_path, device="cuda", data=tmp_path)
    program = (
        "import pathlib, sys, time; n = [a for a in sys.argv if a.startswith('paths.runs=')][0].partition('=')[2]; "
        "p = pathlib.Path(n); p.mkdir(parents=True); time.sleep(60 if n.endswith('1') else 0); "
        "(p / 'result.json').write_text('{}')"
    )
    (tmp_path / "train.py").write_text(program)
    monkeypatch.setattr(translation_runs, "REPOSITORY", tmp_path)
    monkeypatch.setattr(translation_runs, "END_SECONDS", 0)
    assert list(train([finished, slow], options))[-1] == {finished: tmp_path / "un-16-mixed-0" / "result.json"}
