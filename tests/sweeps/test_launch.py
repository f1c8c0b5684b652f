"""What a sweep lists, and how a launcher's failure is met; runs themselves are in tests/integration/test_sweeps.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException

from un.command.errors import UserError
from un.sweeps import launch as sweeps
from un.sweeps.launch import PlannedRun, estimate_seconds, expand, launch, summarize
from un.sweeps.run_names import list_runs
from un.training.data_identity import take_fingerprint, write_fingerprint

RESULT = {
    "schema_version": 1,
    "status": "finished",
    "task": "t",
    "experiment": "digits_vit",
    "norm": {"choice": "un"},
    "model": {},
    "data": {},
    "seed": 0,
    "overrides": [],
    "metrics": {"test/acc1": 12.5},
    "best_epoch": 0,
    "best_step": 1,
    "diverged_step": None,
    "steps": 1,
    "wall_time_seconds": 30.0,
    "parameters": 1,
    "peak_memory_bytes": 1,
    "train_samples_per_second": None,
    "git": {},
    "packages": {},
    "hardware": {},
}


def leave(folder: Path, **result: object) -> None:
    """What a run leaves: a config and, if anything is given, a result."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    if result:
        (folder / "result.json").write_text(json.dumps({**RESULT, **result}))


def test_lists_what_hydra_would_run(tmp_path: Path) -> None:
    arguments = ["hydra/launcher=joblib", f"paths.runs={tmp_path}", "norm=un,layernorm", "seed=range(2)"]
    runs = expand([*arguments, "trainer.max_steps=5"])
    names = [run.folder.relative_to(tmp_path / "digits_vit").as_posix() for run in runs]
    assert names == [
        "norm=un,trainer.max_steps=5/seed=0",
        "norm=un,trainer.max_steps=5/seed=1",
        "norm=layernorm,trainer.max_steps=5/seed=0",
        "norm=layernorm,trainer.max_steps=5/seed=1",
    ]
    expected = ("hydra/launcher=joblib", f"paths.runs={tmp_path}", "norm=un", "seed=1", "trainer.max_steps=5")
    assert runs[1].arguments == expected
    assert {run.status for run in runs} == {"missing"}
    assert list(tmp_path.iterdir()) == []


def test_experiments_are_swept_too_and_equal_runs_are_one() -> None:
    runs = expand(["experiment=digits_vit,imagenet_t2t_vit_14", "data.num_workers=0,1"])
    assert [str(run.folder) for run in runs] == [
        "runs/digits_vit/norm=un/seed=0",
        "runs/imagenet_t2t_vit_14/norm=un/seed=42",
    ]


def test_tells_how_far_the_runs_are(tmp_path: Path) -> None:
    arguments = [f"paths.runs={tmp_path}", "seed=range(4)"]
    folders = [run.folder for run in expand(arguments)]
    leave(folders[0], wall_time_seconds=30)
    leave(folders[1], status="diverged", diverged_step=3, wall_time_seconds=10.0, metrics={})
    leave(folders[2])
    runs = expand(arguments)
    assert [run.status for run in runs] == ["finished", "diverged", "interrupted", "missing"]
    assert [run.seconds for run in runs] == [30, 10, None, None]
    assert estimate_seconds(runs) == 40
    assert estimate_seconds(runs[2:]) is None
    head, *rows, totals = summarize(runs).splitlines()
    assert head.split() == ["run", "status", "minutes", "test/acc1"]
    assert [row.split() for row in rows[:2]] == [
        ["digits_vit/norm=un/seed=0", "finished", "0.5", "12.5"],
        ["digits_vit/norm=un/seed=1", "diverged", "0.1667"],
    ]
    assert totals.startswith("4 runs: 1 finished, 1 diverged, 1 interrupted, 1 missing")


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
        ["experiment=cifar10_vit_tiny", "data.path={}/a,{}/b"],
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


def test_finished_runs_of_a_sweep_are_of_the_data_that_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    arguments = ["data=image_folder", f"data.path={data}", f"paths.runs={tmp_path}"]
    (run,) = expand(arguments)
    leave(run.folder, seed=0)
    (run.folder / "config.yaml").write_text("logger: {}")
    write_fingerprint(run.folder / "fingerprint.json", take_fingerprint(str(data)))
    assert [planned.status for planned in expand([*arguments, "callbacks=activation_stats"])] == ["finished"]
    assert "callbacks.activation_stats" in caplog.text
    assert "force=true would record it" in caplog.text
    (data / "one_more.png").touch()
    with pytest.raises(UserError, match="holds a run of other data"):
        expand(arguments)
    assert expand([*arguments, "force=true"])[0].is_forced


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["norm=un,layernrm"], "layernrm"),
        (["seed=choice(0,1"], "choice"),
        (["trainer.max_epochs=1,0"], "trainer.max_epochs=0 must be"),
    ],
)
def test_mistakes_are_met_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises((UserError, HydraException), match=message):
        expand(arguments)


def test_damaged_result(tmp_path: Path) -> None:
    (run,) = expand([f"paths.runs={tmp_path}"])
    leave(run.folder, steps="many")
    with pytest.raises(ValueError, match="steps is 'many'"):
        expand([f"paths.runs={tmp_path}"])


class Launcher:
    """Finishes the runs whose seed is even; the worker of seed 1 is killed, of which joblib makes an exception."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.seeds: list[int] = []

    def launch(self, job_overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        assert initial_job_idx == 0
        returns = []
        for overrides in job_overrides:
            seed = int(overrides[-1].removeprefix("seed="))
            self.seeds.append(seed)
            leave(self.runs / f"digits_vit/norm=un/seed={seed}", **({"seed": seed} if seed % 2 == 0 else {}))
            if seed == 1:
                raise RuntimeError("a worker was killed")
            job = JobReturn()
            job.status = JobStatus.COMPLETED if seed % 2 == 0 else JobStatus.FAILED
            returns.append(job)
        return returns


def test_a_killed_worker_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launchers: list[Launcher] = []

    def build(*_: object) -> Launcher:
        launchers.append(Launcher(tmp_path))
        return launchers[-1]

    monkeypatch.setattr(sweeps, "_build_launcher", build)
    runs = expand([f"paths.runs={tmp_path}", "seed=range(5)"])
    assert launch(runs) == 2  # seeds 1 and 3
    assert [launcher.seeds for launcher in launchers] == [[0, 1], [2, 3, 4]]
    assert [run.status for run in expand([f"paths.runs={tmp_path}", "seed=range(5)"])] == [
        *("finished", "interrupted", "finished", "interrupted", "finished")
    ]
    launchers.clear()
    finished = [run for run in runs if run.folder.name in ("seed=0", "seed=4")]
    assert launch(finished) == 0
    assert launchers == []


def test_a_launcher_that_starts_nothing_is_not_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [*expand([f"paths.runs={tmp_path}", "hydra/launcher=joblib", "hydra.launcher.backend=none"])]

    def build(*_: object) -> None:
        raise ValueError("no such\nbackend")

    monkeypatch.setattr(sweeps, "_build_launcher", build)
    assert launch(runs) == 1
    assert "the launcher stopped: ValueError: no such backend" in caplog.text


def test_joblib_has_no_more_workers_than_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker gets its share of the cores: two runs on eight cores four each."""
    asked = []

    def build(**arguments: Any) -> None:
        asked.append(arguments["config"].hydra.launcher.n_jobs)
        raise RuntimeError("enough is known")

    monkeypatch.setattr("joblib.effective_n_jobs", lambda n_jobs: 8 if n_jobs == -1 else n_jobs)
    monkeypatch.setattr(sweeps.Plugins, "instantiate_launcher", lambda _, **arguments: build(**arguments))
    for seeds, workers in (("0,1", []), ("0,1,2,3", ["hydra.launcher.n_jobs=3"])):
        launch(expand([f"seed={seeds}", "hydra/launcher=joblib", "paths.runs=/nowhere", *workers]))
    assert asked == [2, 3]


def test_forced_runs_start_over() -> None:
    run = PlannedRun(Path("a"), ("norm=un", "force=True"), "finished", 1.0)
    assert run.is_done
    assert run.is_forced
    assert not PlannedRun(Path("a"), ("norm=un", "force=False"), "finished", 1.0).is_forced
