"""ONNX graphs: what of them belongs to norms, other batch sizes, and eight bits."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.folding.helpers import randomize
from un.finished.onnx_graph import GraphSession, count_operators, list_feeds, quantize_graph, write_graph
from un.folding import fold_norms
from un.norms import UnifiedNorm
from un.surgery import is_norm, replace_norms
from un.tasks import GraphPart

NORM_OPERATORS = {"LayerNormalization", "ReduceMean", "Sqrt", "Div", "Pow"}
build_vit = partial(
    timm.create_model,
    "vit_tiny_patch16_224",
    **{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1, "num_classes": 3},
)


class FormulaNorm(nn.Module):
    """LayerNorm as its formula."""

    def __init__(self, num_features: int, **options: object) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return centered / torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-5)


def make_images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def make_part(model: nn.Module) -> GraphPart:
    return GraphPart(model.eval(), {"images": make_images(2)}, {"images": {0: "batch"}}, ("logits",))


def write(model: nn.Module, path: Path) -> Path:
    write_graph(make_part(model), path)
    return path


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain, formula, unified = build_vit(), build_vit(), build_vit()
    replace_norms(formula, FormulaNorm, carry_affine=False)
    replace_norms(unified, UnifiedNorm)
    folded, _ = fold_norms(randomize(unified), (make_images(2),), on_unfoldable="raise")
    return {"layernorm": plain, "formula": formula, "un": unified, "folded": folded}


@pytest.fixture(scope="module")
def paths(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {name: write(model, folder / f"{name}.onnx") for name, model in models.items()}


def test_operators_of_norms(models: dict[str, nn.Module], paths: dict[str, Path]) -> None:
    sites = [name for name, module in models["un"].named_modules() if is_norm(module)]
    found = {name: count_operators(path, sites) for name, path in paths.items()}
    assert found["layernorm"]["LayerNormalization"] == len(sites) == 3
    assert {"ReduceMean", "Sqrt", "Div", "Pow"} <= found["formula"].keys()
    assert found["un"] == {"Mul": 3, "Add": 3}
    assert found["folded"] == {}


def test_a_folded_graph_has_the_operators_of_a_model_without_norms(paths: dict[str, Path], tmp_path: Path) -> None:
    bare = build_vit()
    replace_norms(bare, nn.Identity)
    operators = count_operators(paths["folded"])
    assert operators == count_operators(write(bare, tmp_path / "bare.onnx"))
    assert NORM_OPERATORS.isdisjoint(operators)
    assert not NORM_OPERATORS.isdisjoint(count_operators(paths["layernorm"]))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_size_computes_what_pytorch_does(models: dict, paths: dict[str, Path], count: int) -> None:
    for name in ("un", "folded"):
        images = make_images(count, seed=count)
        (logits,) = GraphSession(paths[name])(images)
        with torch.no_grad():
            torch.testing.assert_close(logits, models[name](images), rtol=1e-5, atol=1e-5)


def test_nothing_of_the_machine_is_in_the_file(paths: dict[str, Path]) -> None:
    content = paths["folded"].read_bytes()
    assert b"name_scopes" in content
    assert b"site-packages" not in content
    assert b".py" not in content


@pytest.mark.parametrize("examples", [None, 16])
def test_eight_bits(models: dict[str, nn.Module], paths: dict[str, Path], tmp_path: Path, examples: int | None) -> None:
    feeds = list_feeds([{"images": make_images(examples, seed=1)}]) if examples else None
    output = tmp_path / "int8.onnx"
    quantize_graph(paths["folded"], output, feeds)
    kinds = {"QuantizeLinear"} if examples else {"MatMulInteger", "DynamicQuantizeLinear"}
    assert kinds <= count_operators(output).keys()
    images = make_images(32, seed=2)
    (logits,) = GraphSession(output)(images)
    with torch.no_grad():
        expected = models["folded"](images)
    error = float((logits - expected).norm() / expected.norm())
    assert 1e-6 < error < 0.1
