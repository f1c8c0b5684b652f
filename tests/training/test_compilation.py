"""Runs with `compile`: the same numbers as without, and one line where it cannot work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.training.toy import make_config, run_toy
from un.command.checks import check_config
from un.command.errors import UserError
from un.training.compilation import compile_in_training
from un.weights import read_checkpoint


def test_a_compiled_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    eager = run_toy(tmp_path / "eager", "trainer.max_epochs=1")
    compiled = run_toy(tmp_path / "compiled", "trainer.max_epochs=1", "compile.backend=eager", "compile.fullgraph=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled.metrics == pytest.approx(eager.metrics, rel=1e-5)
    states = [
        read_checkpoint(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("eager", "compiled")
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


def test_compiled_norms_end_with_the_same_numbers(tmp_path: Path) -> None:
    eager = run_toy(tmp_path / "eager", "trainer.max_epochs=1")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = run_toy(tmp_path / "compiled", "trainer.max_epochs=1", "compile=norms")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert compiled.metrics == pytest.approx(eager.metrics, rel=1e-4)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ({"compile": 3}, "compile=3 must be true or false or"),
        ({"compile": "norm"}, "compile=norm must be true or false or norms or"),
        ({"compile": {"speed": 3}}, "no option 'speed'; it takes fullgraph"),
        ({"compile": True, "callbacks": {"activation_stats": {}}}, "exclude each other"),
    ],
)
def test_wrong_options_are_told_before_anything_is_built(tmp_path: Path, wanted: Any, part: str) -> None:
    config = OmegaConf.merge(make_config(tmp_path), wanted)
    with pytest.raises(UserError, match=part):
        check_config(config)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"backend": "fast"}, "Invalid backend"),
        ({"backend": "eager", "fullgraph": True}, "Data-dependent branching"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(options: dict[str, Any], part: str) -> None:
    model = Branching()
    with pytest.raises(UserError, match=part) as caught, compile_in_training(model, options):
        model(torch.ones(2))
    assert "\n" not in str(caught.value)
    assert "compile=null" in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), compile_in_training(Branching(), {"backend": "eager"}):
        raise RuntimeError("out of memory")
