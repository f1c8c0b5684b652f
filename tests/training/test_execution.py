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
    [  # 8 GPUs with 64 images, 8 with 128, 8 with 3584 tokens
        ("imagenet_t2t_vit_14", "", 1, 8),
        ("imagenet_swin_tiny", "data.batch_size=64", 16, 1),
        ("wmt14_en_de", "data.max_tokens=1792", 4, 4),
    ],
)
def test_accumulates_up_to_the_recipes_batch(experiment: str, batch: str, processes: int, accumulated: int) -> None:
    execution = plan(processes, f"experiment={experiment}", "norm=un", *filter(None, [batch]))
    assert execution.accumulate_grad_batches == accumulated
    assert execution.norm == ({"count": "updates"} if accumulated > 1 else {})
    batches = {"imagenet_t2t_vit_14": 512, "imagenet_swin_tiny": 1024, "wmt14_en_de": 28672}
    assert execution.global_batch_size == batches[experiment]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    message = "global_batch_size=512 is not a multiple of data.batch_size=64 x 3 processes.*=null"
    with pytest.raises(UserError, match=message):
        plan(3, "experiment=imagenet_t2t_vit_14")
    with pytest.raises(UserError, match=r"global_batch_size=32 needs data[.]batch_size of at least 1, got 0"):
        plan(1, "global_batch_size=32", "data.batch_size=0")


@pytest.mark.parametrize(
    ("override", "accumulated"), [("global_batch_size=null", 1), ("trainer.accumulate_grad_batches=3", 3)]
)
def test_what_was_typed_stays(override: str, accumulated: int) -> None:
    execution = plan(1, "experiment=imagenet_t2t_vit_14", override)
    assert (execution.accumulate_grad_batches, execution.norm) == (accumulated, {})


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        (["norm=mabn"], {"count": "updates"}),
        (["norm=layernorm"], {}),
        (["norm=prepbn"], {"calls_per_step": 8}),
        (["norm=prepbn", "norm.calls_per_step=3"], {}),
        (["norm=un", "norm.count=calls"], {}),
    ],
    ids=lambda value: " ".join(value),
)
def test_norms_that_count_calls_follow(norm: list[str], options: dict[str, Any]) -> None:
    assert plan(1, "experiment=imagenet_t2t_vit_14", *norm).norm == options


@pytest.mark.parametrize(
    ("processes", "overrides", "is_recipe", "parts"),
    [
        (2, [], True, ["512 = 64 x 2 processes x 4 accumulated batches; norm.count=updates", "still move with every"]),
        (1, ["global_batch_size=null"], False, ["global batch 64 = 64 x 1 process; not the recipe's 512"]),
        (1, ["trainer.accumulate_grad_batches=8"], True, ["count 8 calls an update; norm.count=updates"]),
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
    assert describe_start(make_config(Path()), "digits_vit", Execution(2, 8, 1, "32-true")) == ("", True)


SWITCHES = ("norm.count=calls", "data.batch_size=4", "data.num_batches=8")


def test_a_derived_accumulation_is_the_typed_one(tmp_path: Path) -> None:
    derived = run_toy(tmp_path / "derived", *SWITCHES, "global_batch_size=16")
    typed = run_toy(tmp_path / "typed", *SWITCHES, "trainer.accumulate_grad_batches=4", "norm.count=updates")
    assert derived.metrics == typed.metrics
    assert derived.steps == 3 * 8 // 4
    assert derived.norm["count"] == "updates"
    facts = {"processes": 1, "batch_size": 4, "precision": "32-true"}
    expected = {**facts, "accumulate_grad_batches": 4, "global_batch_size": 16, "norm": {"count": "updates"}}
    assert derived.execution == expected == json.loads((tmp_path / "derived/execution.json").read_text())


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    file, before = tmp_path / "execution.json", Execution(8, 64, 1, "32-true")
    keep_execution(file, before, resumes=False, writes=False)
    assert not file.exists()
    keep_execution(file, before, resumes=False, writes=True)
    keep_execution(file, before, resumes=True, writes=True)
    for other, part in (
        (Execution(4, 64, 2, "32-true", {"count": "updates"}), r"processes was 8, is 4; .*batches was 1, is 2"),
        (Execution(8, 64, 1, "16-mixed"), r"\(precision was 32-true, is 16-mixed\)"),
    ):
        with pytest.raises(UserError, match=f"was started differently.*{part}.*force=true"):
            keep_execution(file, other, resumes=True, writes=True)
