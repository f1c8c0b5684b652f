"""What a sweep lists, and how a launcher's failure is met; runs themselves are in tests/integration/test_sweeps.py."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException

from tests.reports.runs import make_run
from un.command.errors import UserError
from un.sweeps.launch import expand, launch, summarize
from un.sweeps.run_names import list_runs
from un.training.data_identity import take_fingerprint, write_fingerprint


def begin(folder: Path) -> None:
    """Leaves what a run without a result does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("logger: {}")


def test_lists_what_hydra_would_run(tmp_path: Path) -> None:
    arguments = ["hydra/launcher=joblib", f"paths.runs={tmp_path}", "norm=un,layernorm", "seed=range(2)"]
    runs = expand([*arguments, "trainer.max_steps=5", "data.num_workers=0,1"])  # runs of the same name are one
    assert [run.folder.relative_to(tmp_path / "digits_vit").as_posix() for run in runs] == [
        "norm=un,trainer.max_steps=5/seed=0",
        "norm=un,trainer.max_steps=5/seed=1",
        "norm=layernorm,trainer.max_steps=5/seed=0",
        "norm=layernorm,trainer.max_steps=5/seed=1",
    ]
    first = ("hydra/launcher=joblib", f"paths.runs={tmp_path}", "norm=un", "seed=1")
    assert runs[1].arguments == (*first, "trainer.max_steps=5", "data.num_workers=1")
    assert {run.status for run in runs} == {"missing"}
    assert list(tmp_path.iterdir()) == []


def test_experiments_are_swept_too() -> None:
    assert [str(run.folder) for run in expand(["experiment=digits_vit,imagenet_t2t_vit_14"])] == [
        "runs/digits_vit/norm=un/seed=0",
        "runs/imagenet_t2t_vit_14/norm=un/seed=42",
    ]


def test_says_how_far_the_runs_are(tmp_path: Path) -> None:
    runs = expand([f"paths.runs={tmp_path}", "seed=range(4)"])
    make_run(tmp_path, "norm=un", 0, 12.5, wall_time_seconds=30.0)
    make_run(tmp_path, "norm=un", 1, None, wall_time_seconds=10.0)
    begin(runs[2].folder)
    assert [run.status for run in runs] == ["finished", "diverged", "interrupted", "missing"]
    head, *rows, totals = summarize(runs).splitlines()
    assert head.split() == ["run", "status", "minutes", "test/loss", "test/acc1"]
    assert [row.split() for row in rows[:2]] == [
        ["digits_vit/norm=un/seed=0", "finished", "0.5", "0.5", "12.5"],
        ["digits_vit/norm=un/seed=1", "diverged", "0.1667"],
    ]
    assert totals.startswith("4 runs: 1 finished, 1 diverged, 1 interrupted, 1 missing; train.log")


def test_data_of_the_users_own_are_runs_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = f"data.path={tmp_path / 'a'},{tmp_path / 'b'},{tmp_path / 'a'}/"
    for choice in ("data=image_folder", "data=digits"):
        names = [run.folder.parent.name for run in expand([choice, paths, f"paths.runs={tmp_path}"])]
        assert ["data.path=a-" in name for name in names] == [True, False]
        assert ["data.path=b-" in name for name in names] == [False, True]


@pytest.mark.parametrize(
    "jobs",
    [
        ["experiment=cifar10_vit_tiny", "data.path=null,{}/b"],
        ["init_weights={}/x/best.ckpt,{}/x_best.ckpt"],
        ["trainer.precision=32-true,bf16-mixed"],
    ],
    ids=" ".join,
)
def test_jobs_that_one_folder_cannot_hold_are_refused(jobs: list[str], tmp_path: Path) -> None:
    arguments = [job.replace("{}", str(tmp_path)) for job in jobs]
    for list_them in (expand, list_runs):
        with pytest.raises(UserError, match=r"would both be the run .*another paths\.runs"):
            list_them(arguments)


def test_finished_runs_are_of_the_data_that_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    arguments = ["data=image_folder", f"data.path={data}", f"paths.runs={tmp_path}"]
    (run,) = expand(arguments)
    make_run(tmp_path, run.folder.parent.name)
    begin(run.folder)
    write_fingerprint(run.folder / "fingerprint.json", take_fingerprint(str(data)))
    assert [planned.status for planned in expand([*arguments, "callbacks=activation_stats"])] == ["finished"]
    assert "callbacks.activation_stats" in caplog.text
    assert "force=true would record it" in caplog.text
    (data / "one_more.png").touch()
    with pytest.raises(UserError, match="holds a run of other data"):
        expand(arguments)
    assert expand([*arguments, "force=true"])[0].force


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["norm=un,layernrm"], "layernrm"),
        (["seed=choice(0,1"], "choice"),
        (["trainer.max_epochs=1,0"], "trainer.max_epochs=0 must be"),
        (["seed=interval(0,1)"], "does not support sweep type"),
    ],
)
def test_mistakes_are_met_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises((UserError, HydraException), match=message):
        expand(arguments)


class Launcher:
    """Finishes the runs whose seed is even; the worker of seed 1 is killed, of which joblib makes an exception."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.seeds: list[int] = []

    def launch(self, job_overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for overrides in job_overrides:
            seed = int(overrides[-1].removeprefix("seed="))
            self.seeds.append(seed)
            if seed % 2 == 0:
                make_run(self.runs, "norm=un", seed)
            begin(self.runs / f"digits_vit/norm=un/seed={seed}")
            if seed == 1:
                raise RuntimeError("a worker was killed")
            job = JobReturn()
            job.status = JobStatus.COMPLETED if seed % 2 == 0 else JobStatus.FAILED
            returns.append(job)
        return returns


def test_a_killed_worker_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launchers: list[Launcher] = []

    def build(*_: object, **arguments: object) -> Launcher:
        launchers.append(Launcher(tmp_path))
        return launchers[-1]

    monkeypatch.setattr(Plugins, "instantiate_launcher", build)
    runs = expand([f"paths.runs={tmp_path}", "seed=range(5)"])
    assert launch(runs) == 2  # seeds 1 and 3
    assert [launcher.seeds for launcher in launchers] == [[0, 1], [2, 3, 4]]
    assert [run.status for run in runs] == ["finished", "interrupted", "finished", "interrupted", "finished"]
    launchers.clear()
    assert launch([runs[0], runs[4]]) == 0
    assert launchers == []


def test_a_launcher_that_starts_nothing_is_not_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the way there: joblib has no more workers than runs, as each gets its share of the cores."""
    asked = []

    def build(*_: object, config: Any, **arguments: object) -> None:
        asked.append(config.hydra.launcher.n_jobs)
        raise ValueError("no such\nbackend")

    monkeypatch.setattr(Plugins, "instantiate_launcher", build)
    monkeypatch.setattr("joblib.effective_n_jobs", lambda n_jobs: 8 if n_jobs == -1 else n_jobs)
    for seeds, workers in (("0,1", []), ("0,1,2,3", ["hydra.launcher.n_jobs=3"])):
        runs = expand([f"paths.runs={tmp_path}", f"seed={seeds}", "hydra/launcher=joblib", *workers])
        assert launch(runs) == len(runs)
    assert asked == [2, 3]
    assert "the launcher stopped: ValueError: no such backend" in caplog.text
