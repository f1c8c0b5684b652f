"""What users get wrong, in every program: one line that names it, and exit code 2. tests/fuzz draws more of them."""

import os
from pathlib import Path

import pytest
import yaml

from tests.integration.commands import FAST, REPOSITORY, run, run_here

TRAIN = [
    ("norm=unn", ["norm=unn is unknown", "did you mean 'un'?", "layernorm"]),
    ("seed=1 -m norm=un,layernrm", ["norm=layernrm is unknown", "did you mean 'layernorm'?"]),
    ("logger=[csv,wand]", ["logger=wand is unknown", "did you mean 'wandb'?"]),
    ("nrom=un", ["'nrom'", "did you mean 'norm'?"]),
    ("trainer.max_epoch=3", ["'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
    ("+trainer.max_epoch=3", ["trainer has no option 'max_epoch'", "did you mean 'max_epochs'?"]),
    ("+norm.widow=3", ["norm:", "widow"]),
    ("+sed=3", ["no config key 'sed'", "did you mean 'seed'?"]),
    ("surgery.reset_steps=yes", ["surgery.reset_steps=yes must be true or false"]),
    ("--nothing", ["unrecognized arguments: --nothing"]),
    ("norm=batchnorm +norm.penalty_mean=1", ["norm has no option 'penalty_mean'"]),
    ("norm=rbn norm.penalty_mean=-1", ["norm: penalty_mean must be at least 0, got -1"]),
    ("norm.window=abc", ["norm.window=abc must be an integer or a list"]),
    ("norm.window=0", ["norm", "window must be at least 1", "0"]),
    ("norm.compensation_start=abc", ["norm: compensation_start must be at least 0, got abc"]),
    ("+data.transform.crop_padding=abc", ["data.transform.crop_padding=abc must be an integer"]),
    ("data.transform.std=[0]", ["std=[0]", "above 0"]),
    ("data.transform.mean=[0.1,0.2] data.transform.std=[1,1]", ["data.num_channels=1"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan must be a number"]),
    ("optimizer.lr=-1", ["-1"]),
    ("optimizer.betas=[0.9]", ["optimizer:"]),
    ("task.label_smoothing=2", ["task.label_smoothing=2 must be between 0 and 1"]),
    ("task.mixup={mixup_alpha:-1}", ["mixup_alpha=-1"]),
    ("task.mixup={mode:pairs}", ["task.mixup.mode=pairs", "batch, pair, elem"]),
    ("task.mixup=3", ["task.mixup=3 must be a mapping or null"]),
    ("trainer.precision=8", ["recision"]),
    ("seed=-1", ["seed=-1 must be an integer of at least 0"]),
    ("data.batch_size=0", ["data.batch_size=0"]),
    ("data.path=/nowhere", ["/nowhere"]),
    ("data.path=[a,b]", ["data.path='[a,b]' (as a folder /", "no such folder"]),
    ("global_batch_size=0", ["global_batch_size=0 must be an integer of at least 1 or null"]),
    ("global_batch_size=9", ["global_batch_size=9", "data.batch_size=8 x 1 process:"]),
    ("model.name=vit_tiny_patch1_224", ["vit_tiny_patch16_224"]),
    ("init_weights=/nowhere/best.ckpt", ["/nowhere/best.ckpt: no such checkpoint"]),
    ("norm=un,layernorm seed=1", ["norm=un,layernorm is a run for each value: add -m"]),
    ("ablation=un_window", ["ablation=un_window is many runs, not one: python train.py -m", "ablation=un_window"]),
    ("data.path=no/such/folder", ["data.path='no/such/folder' (as a folder /", "/no/such/folder): no such folder"]),
    ("paths.runs=README.md", ["Not a directory"]),
    ("paths.runs=/proc/nowhere", ["/proc"]),
]
OTHERS = [
    ("eval.py", ["/nowhere: no such folder"], "run=/nowhere"),
    ("eval.py", ["run is missing"], ""),
    ("eval.py", ["did you mean 'run'?"], "rum=x"),
    ("scripts/fold.py", ["README.md: no such folder"], "run=README.md"),
    ("scripts/fold.py", ["average_checkpoints=2", "kept no epochs"], "run={folder} average_checkpoints=2"),
    ("scripts/export.py", ["'outptu'", "did you mean 'output'?"], "run=/nowhere outptu=x"),
    ("scripts/export.py", ["format=onx must be one of onnx, torch_export"], "run=/nowhere format=onx"),
    ("scripts/export.py", ["quantize=int4 must be int8 or null"], "run=/nowhere quantize=int4"),
    ("scripts/export.py", ["quantize=int8 is for format=onnx"], "run=/nowhere format=torch_export quantize=int8"),
    ("scripts/export.py", ["calibration=8 is for quantize=int8"], "run=/nowhere calibration=8"),
    ("scripts/export.py", ["calibration=-1 must be a whole number"], "run=/nowhere calibration=-1"),
    ("scripts/export.py", ["fold=maybe must be true or false"], "run=/nowhere fold=maybe"),
    ("scripts/reproduce.py", ["name one table=<name>"], "experiment=digits_vit"),
    ("scripts/reproduce.py", ["table=un_windw is unknown", "did you mean 'un_window'?"], "table=un_windw"),
    ("scripts/reproduce.py", ["table=../train is unknown"], "table=../train"),
    ("scripts/reproduce.py", ["norm={ is unknown"], "table=un_window norm={"),
    ("scripts/reproduce.py", ["did you mean 'digits_vit'?"], "table=norms experiment=digit_vit"),
    ("scripts/reproduce.py", ["unrecognized arguments: --dryrun"], "table=un_window --dryrun"),
    ("scripts/reproduce.py", ["ablation=nothing is unknown"], "ablation=nothing"),
    ("scripts/reproduce.py", ["makes no sense", "padding"], "ablation=un_padding experiment=digits_vit"),
    ("scripts/reproduce.py", ["is measured, not run", "it takes paths.runs only"], "table=efficiency norm=un"),
    ("scripts/report.py", ["no result.json below"], "/nowhere"),
    ("scripts/report.py", ["/nowhere.md"], "{folder} --update /nowhere.md"),
    ("scripts/report.py", ["/proc/nowhere"], "--output /proc/nowhere {folder}"),
    ("scripts/analyse.py", ["run=/nowhere"], "run=/nowhere"),
    ("scripts/analyse.py", ["rum=/nowhere"], "rum=/nowhere"),
    ("scripts/analyse.py", ["nothing"], "run={folder} metrics=nothing"),
    ("scripts/benchmark.py", ["invalid choice: 'nothing'"], "nothing"),
    ("scripts/benchmark.py", ["--rounds: '0' must be a whole number of at least 1"], "layers --rounds=0"),
    ("scripts/benchmark.py", ["/nowhere"], "layers --output=/nowhere/x.json"),
    ("scripts/benchmark.py", ["experiment=nothing is unknown"], "processes --experiment=nothing"),
]


@pytest.mark.parametrize(("arguments", "parts"), TRAIN, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes_of_training(arguments: str, parts: list[str], tmp_path: Path) -> None:
    run_here("train.py", f"paths.runs={tmp_path}", *FAST, *arguments.split()).check_error(*parts)


@pytest.mark.parametrize(("script", "parts", "arguments"), OTHERS, ids=lambda x: x if isinstance(x, str) else "")
def test_mistakes_of_other_programs(script: str, parts: list[str], arguments: str, trained: Path) -> None:
    run_here(script, *(text.replace("{folder}", str(trained)) for text in arguments.split())).check_error(*parts)


def test_model_without_norm(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs/model/vit_digits.yaml").read_text())
    arguments = [f"~model.{key}" for key in config if key not in ("_target_", "name")]
    outcome = run_here("train.py", f"paths.runs={tmp_path}", *FAST, *arguments, "model.name=resnet10t")
    outcome.check_error("no LayerNorm")


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("data.path={}/broken", "broken"),
        ("data.path={}/empty", "empty"),
        ("data.path={}/columns", "columns"),
        ("data.path={}/file", "file"),
        ("init_weights={}/file", "file is cut short or not a checkpoint"),
    ],
)
def test_files_that_only_look_like_data_or_weights(wrong: str, part: str, tmp_path: Path) -> None:
    for name in ("broken", "empty", "columns"):
        (tmp_path / name).mkdir()
    for split in ("train", "test"):
        (tmp_path / "broken" / f"{split}.parquet").write_bytes(b"PAR1" + os.urandom(100))
        (tmp_path / "columns" / f"{split}.csv").write_text("a,b\n1,2\n")
    (tmp_path / "file").write_bytes(os.urandom(100))
    run_here("train.py", f"paths.runs={tmp_path}/runs", *FAST, wrong.format(tmp_path)).check_error(part)


def test_a_mistake_as_users_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own; with a traceback for those who want one."""
    run("train.py", f"paths.runs={tmp_path}", "norm=unn").check_error("norm=unn is unknown")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = run("train.py", f"paths.runs={tmp_path}", "norm=unn")
    assert outcome.code == 1
    assert "Traceback" in outcome.errors
