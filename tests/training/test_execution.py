"""The recipe's global batch on any number of processes, and what a run remembers of how it was executed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.training.toy import make_config, run_toy
from un.command.errors import CONFIG_FOLDER, UserError
from un.training.execution import Execution, describe_start, keep_execution, plan_execution


def plan(processes: int, *overrides: str, precision: str = "32-true") -> Execution:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", list(overrides))
    return plan_execution(config, overrides, processes, precision)


@pytest.mark.parametrize(
    ("experiment", "batch", "processes", "accumulated"),
    [  # 8 GPUs with 64 images, 8 with 128, 8 with 3584 tokens; one GPU with 128 images
        ("imagenet_t2t_vit_14", "", 1, 8),
        ("imagenet_t2t_vit_14", "data.batch_size=32", 16, 1),
        ("imagenet_swin_tiny", "", 2, 4),
        ("wmt14_en_de", "data.max_tokens=1792", 4, 4),
        ("cifar10_transfer", "", 1, 1),
    ],
)
def test_accumulates_up_to_the_recipes_batch(experiment: str, batch: str, processes: int, accumulated: int) -> None:
    execution = plan(processes, f"experiment={experiment}", "norm=un", *filter(None, [batch]))
    assert execution.accumulate_grad_batches == accumulated
    assert execution.norm == ({"count": "updates"} if accumulated > 1 else {})
    batches = {"imagenet_t2t_vit_14": 512, "imagenet_swin_tiny": 1024, "wmt14_en_de": 28672, "cifar10_transfer": 128}
    assert execution.global_batch_size == batches[experiment]


@pytest.mark.parametrize(("processes", "batch"), [(3, 64), (1, 1024)])
def test_a_batch_that_does_not_divide_is_refused(processes: int, batch: int) -> None:
    message = f"global_batch_size=512 is not a multiple of data.batch_size={batch} x {processes} process.*=null"
    with pytest.raises(UserError, match=message) as error:
        plan(processes, "experiment=imagenet_t2t_vit_14", f"data.batch_size={batch}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "accumulated"),
    [
        (["global_batch_size=null"], 1),
        (["trainer.accumulate_grad_batches=3"], 3),
        (["debug=fast"], 1),
    ],
)
def test_what_was_typed_stays(overrides: list[str], accumulated: int) -> None:
    execution = plan(1, "experiment=imagenet_t2t_vit_14", *overrides)
    assert (execution.accumulate_grad_batches, execution.norm) == (accumulated, {})


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        (["norm=un"], {"count": "updates"}),
        (["norm=mabn"], {"count": "updates"}),
        (["norm=layernorm"], {}),
        (["norm=batchnorm"], {}),
        (["norm=prepbn"], {"calls_per_step": 8}),
        (["norm=prepbn", "norm.calls_per_step=3"], {}),
        (["norm=un", "norm.count=calls"], {}),
    ],
    ids=lambda value: " ".join(value),
)
def test_norms_that_count_calls_follow(norm: list[str], options: dict[str, Any]) -> None:
    assert plan(1, "experiment=imagenet_t2t_vit_14", *norm).norm == options


def test_experiments_without_a_batch_of_their_own_are_left_alone() -> None:
    execution = plan(4, "experiment=digits_vit")
    assert (execution.accumulate_grad_batches, execution.global_batch_size) == (1, 4 * 64)


@pytest.mark.parametrize(
    ("processes", "overrides", "is_recipe", "parts"),
    [
        (8, [], True, ["global batch 512 = 64 x 8 processes"]),
        (2, [], True, ["512 = 64 x 2 processes x 4 accumulated batches; norm.count=updates", "still move with every"]),
        (1, ["global_batch_size=null"], False, ["global batch 64 = 64 x 1 process; not the recipe's 512"]),
        (1, ["global_batch_size=256"], False, ["4 accumulated batches; not the recipe's 512; norm.count=updates"]),
        (1, ["trainer.accumulate_grad_batches=8"], True, ["count 8 calls an update; norm.count=updates"]),
        (1, ["debug=fast"], False, ["global batch 8 = 8 x 1 process; not the recipe's 512"]),
    ],
)
def test_says_at_its_start_what_it_does(
    processes: int, overrides: list[str], is_recipe: bool, parts: list[str]
) -> None:
    arguments = ("experiment=imagenet_t2t_vit_14", "norm=un", *overrides)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", list(arguments))
    line, found = describe_start(config, "imagenet_t2t_vit_14", plan(processes, *arguments))
    assert found is is_recipe
    for part in parts:
        assert part in line


def test_says_nothing_where_no_batch_is_asked_for() -> None:
    line, found = describe_start(make_config(Path(), "norm.count=calls"), "digits_vit", Execution(2, 8, 1, "32-true"))
    assert (line, found) == ("", True)
    config = make_config(Path(), "norm.count=calls", "global_batch_size=32")
    line, found = describe_start(config, "digits_vit", Execution(2, 8, 2, "32-true", {"count": "updates"}))
    assert line.startswith("global batch 32 = 8 x 2 processes x 2 accumulated batches; norm.count=updates; ")
    assert found


def test_a_batch_of_unknown_parts_is_refused() -> None:
    with pytest.raises(UserError, match=r"global_batch_size=32 needs data[.]batch_size of at least 1, got 0"):
        plan(1, "global_batch_size=32", "data.batch_size=0")


SWITCHES = ("norm.count=calls", "data.batch_size=4", "data.num_batches=8")


def test_a_derived_accumulation_is_the_typed_one(tmp_path: Path) -> None:
    derived = run_toy(tmp_path / "derived", *SWITCHES, "global_batch_size=16")
    typed = run_toy(tmp_path / "typed", *SWITCHES, "trainer.accumulate_grad_batches=4", "norm.count=updates")
    alone = run_toy(tmp_path / "alone", *SWITCHES)
    assert derived.metrics == typed.metrics != alone.metrics
    assert (derived.steps, alone.steps) == (3 * 8 // 4, 3 * 8)
    assert (derived.norm["count"], alone.norm["count"]) == ("updates", "calls")
    facts = {"processes": 1, "batch_size": 4, "precision": "32-true"}
    expected = {**facts, "accumulate_grad_batches": 4, "global_batch_size": 16, "norm": {"count": "updates"}}
    assert derived.execution == expected == json.loads((tmp_path / "derived/execution.json").read_text())
    assert alone.execution == {**facts, "accumulate_grad_batches": 1, "global_batch_size": 4, "norm": {}}


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    file, before = tmp_path / "execution.json", Execution(8, 64, 1, "32-true")
    keep_execution(file, before, resumes=False, writes=False)
    assert not file.exists()
    keep_execution(file, Execution(1, 64, 1, "32-true"), resumes=True, writes=True)  # of an early version
    keep_execution(file, before, resumes=False, writes=True)
    keep_execution(file, before, resumes=True, writes=True)
    for other, part in (
        (Execution(4, 64, 2, "32-true", {"count": "updates"}), r"processes was 8, is 4; .*batches was 1, is 2"),
        (Execution(8, 64, 1, "16-mixed"), r"\(precision was 32-true, is 16-mixed\)"),
    ):
        with pytest.raises(UserError, match=f"was started differently.*{part}.*force=true"):
            keep_execution(file, other, resumes=True, writes=True)
    file.write_text("{}")
    with pytest.raises(UserError, match=r"execution[.]json is damaged"):
        keep_execution(file, before, resumes=True, writes=True)


def test_a_stopped_run_is_not_resumed_in_another_precision(tmp_path: Path) -> None:
    run_toy(tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(UserError, match="precision was 32-true, is bf16-mixed"):
        run_toy(tmp_path, "trainer.precision=bf16-mixed")
