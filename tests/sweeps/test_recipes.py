"""What a table marks: computed from what was trained, whatever was typed and wherever the run's folder came from."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.reports.runs import RESULT
from un.command.errors import CONFIG_FOLDER
from un.reports.rendering import render_markdown
from un.reports.result import write_result
from un.reports.runs import Run, find_runs
from un.sweeps.run_names import PlannedRun
from un.sweeps.table_plans import plan_table, read_table
from un.sweeps.tables import compare_known, fill_table, find_on_disk
from un.training.execution import apply_execution, plan_execution
from un.training.run_folder import RunFolder

EPOCHS = {"imagenet_t2t_vit_14": 310, "cifar10_transfer": 60, "cifar100_transfer": 60}
IMAGES = {"imagenet_t2t_vit_14": 1_281_167, "cifar10_transfer": 50_000, "cifar100_transfer": 50_000}


def leave(run: PlannedRun, processes: int = 1, precision: str | None = None, **changes: Any) -> Run:
    """Leaves what a whole training on so many processes would."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", [argument for argument in run.arguments if not argument.startswith("hydra")])
    execution = plan_execution(config, run.arguments, processes, precision or config.trainer.precision)
    trained = OmegaConf.to_container(apply_execution(config, execution), resolve=True)
    assert isinstance(trained, dict)
    steps = config.trainer.max_steps
    if steps == -1 and execution.global_batch_size is not None:
        steps = EPOCHS[run.key[0]] * (IMAGES[run.key[0]] // execution.global_batch_size)
    result = replace(
        RESULT,
        experiment=run.key[0],
        seed=config.seed,
        norm={"choice": "un", **trained["norm"]},
        metrics={"test/acc1": 80.0, "test/bleu": 30.0},
        execution=execution.describe(),
        steps=steps,
    )
    run.folder.mkdir(parents=True)
    folder = RunFolder(run.folder)
    folder.write_config({str(key): value for key, value in OmegaConf.to_container(config, resolve=True).items()})
    write_result(replace(result, **changes), folder.result)
    return Run(run.folder, result)


def plan_row(table: str, label: str, *arguments: str) -> list[PlannedRun]:
    (row,) = [row for row in plan_table(read_table(table), arguments).rows if row.label == label]
    return [run for cell in row.runs for run in cell]


def list_marks(table: str, label: str, arguments: Sequence[str]) -> list[tuple[bool, tuple[str, ...]]]:
    comparison = fill_table(plan_table(read_table(table), arguments), find_on_disk)
    (row,) = [row for row in comparison.rows if row.label == label]
    return [(cell.is_marked, cell.departures) for cell in row.cells]


@pytest.mark.parametrize(
    ("arguments", "processes", "parts"),
    [
        (["trainer=ddp"], 8, []),
        (["trainer.devices=2", "trainer.num_nodes=2"], 4, []),
        (["trainer.accelerator=gpu", "data.num_workers=2", "data.path=/imagenet", "seed=7", "logger=wandb"], 8, []),
        (["trainer.accumulate_grad_batches=8", "norm.count=updates"], 1, []),
        (["trainer.accumulate_grad_batches=8"], 1, ["norm.count calls, of which 8 make an update"]),
        (["trainer.accumulate_grad_batches=8"], 8, ["a global batch of 4096, not 512", "updates 96720, not 775620"]),
        (["global_batch_size=null"], 1, ["a global batch of 64, not 512"]),
        (["debug=fast"], 8, ["trainer.max_steps 3, not -1", "data.path null", "updates 3, not 775620"]),
        (["trainer.precision=16-mixed"], 8, ["precision 16-mixed, not 32-true"]),
        (["norm.sync=true"], 8, ["norm.sync true, not false"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_the_mark_is_of_what_was_trained(
    arguments: list[str], processes: int, parts: list[str], tmp_path: Path
) -> None:
    """The recipe: 310 epochs of 1,281,167 images in float32, 8 x 64 of them an update."""
    arguments = [*arguments, f"paths.runs={tmp_path}"]
    (run,) = plan_row("imagenet_t2t_vit_14", "UN", *arguments)
    leave(run, processes)
    ((is_marked, departures),) = list_marks("imagenet_t2t_vit_14", "UN", arguments)
    assert is_marked is bool(parts)
    for part in parts:
        assert any(part in departure for departure in departures), departures


def test_a_debug_run_in_the_folder_of_another_is_marked(tmp_path: Path) -> None:
    roots = f"paths.runs={tmp_path}"
    ((run,), (debug,)) = (plan_row("imagenet_t2t_vit_14", "UN", *more, roots) for more in ([], ["debug=fast"]))
    leave(debug)
    shutil.move(debug.folder, run.folder.parent.parent / "taken")
    run.folder.parent.mkdir(parents=True)
    shutil.move(run.folder.parent.parent / "taken", run.folder)
    ((is_marked, departures),) = list_marks("imagenet_t2t_vit_14", "UN", [roots])
    assert is_marked
    assert "trainer.max_steps 3, not -1" in departures
    (comparison,) = (found for found in compare_known(find_runs([tmp_path])[0]) if found.name == "imagenet_t2t_vit_14")
    assert "80.00 † |" in render_markdown(comparison)
    assert "† our setting, not the paper's: " in render_markdown(comparison)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"execution": {}}, "a global batch of unknown size, not 4096"),
        ({"steps": 98_000}, "updates 98000, not 100000"),
        ({"steps": 99_500}, ""),
        ({"status": "diverged", "diverged_step": 7, "steps": 7, "metrics": {}}, ""),
    ],
)
def test_what_a_run_does_not_record_cannot_be_the_papers(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    """A run that diverged has no number to mark."""
    arguments = [f"paths.runs={tmp_path}", "seed=0"]
    (run,) = plan_row("iwslt14", "UN", *arguments)
    leave(run, **changes)
    ((is_marked, departures),) = list_marks("iwslt14", "UN", arguments)
    assert (is_marked, departures) == (bool(part), (part,) if part else ())
    RunFolder(run.folder).config.unlink()
    unknown = () if "status" in changes else ("a run without its config",)
    assert list_marks("iwslt14", "UN", arguments) == [(bool(unknown), unknown)]


def test_progressive_norms_count_as_many_calls_as_were_accumulated(tmp_path: Path) -> None:
    arguments = [f"paths.runs={tmp_path}"]
    (run,) = plan_row("imagenet_t2t_vit_14", "PRepBN", *arguments)
    leave(run, processes=2)
    assert list_marks("imagenet_t2t_vit_14", "PRepBN", arguments) == [(False, ())]
    shutil.rmtree(run.folder)
    leave(run, processes=2, norm={"choice": "prepbn", "calls_per_step": 1})
    ((is_marked, departures),) = list_marks("imagenet_t2t_vit_14", "PRepBN", arguments)
    assert (is_marked, departures) == (True, ("norm.calls_per_step 1, not 4",))


def test_a_run_is_no_more_the_papers_than_the_one_it_starts_from(tmp_path: Path) -> None:
    arguments = [f"paths.runs={tmp_path}", "seed=0"]
    for run in plan_row("cifar_transfer", "UN", *arguments):
        leave(run)
        assert run.start is not None
        (start,) = {run.start}
    gone = "the run it starts from, imagenet_t2t_vit_14/norm=un/seed=42, is not there"
    assert list_marks("cifar_transfer", "UN", arguments) == [(True, (gone,))] * 2
    leave(start, processes=8)
    assert list_marks("cifar_transfer", "UN", arguments) == [(False, ())] * 2
    shutil.rmtree(start.folder)
    leave(start, processes=8, steps=3)
    assert list_marks("cifar_transfer", "UN", arguments) == [(True, ("started from updates 3, not 775620",))] * 2
    weights = [*arguments, "init_weights=/other/best.ckpt"]
    for run in plan_row("cifar_transfer", "UN", *weights):
        leave(run)
    assert list_marks("cifar_transfer", "UN", weights) == [(True, ("init_weights /other/best.ckpt, not null",))] * 2
