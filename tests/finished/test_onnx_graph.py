"""ONNX graphs: what of them belongs to norms, other batch sizes, and eight bits."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.folding.helpers import randomize
from un.finished.onnx_graph import GraphSession, count_operators, quantize_graph, write_graph
from un.folding import fold_norms
from un.norms import UnifiedNorm
from un.surgery import is_norm, replace_norms
from un.tasks import GraphPart

build_vit = partial(
    timm.create_model,
    "vit_tiny_patch16_224",
    **{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1, "num_classes": 3},
)


def make_images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """The same ViT with LayerNorm, with UN, with UN folded and without norms."""
    torch.manual_seed(0)
    plain, unified, bare = build_vit(), build_vit(), build_vit()
    replace_norms(unified, UnifiedNorm)
    replace_norms(bare, nn.Identity)
    folded, _ = fold_norms(randomize(unified), (make_images(2),), on_unfoldable="raise")
    return {"layernorm": plain, "un": unified, "folded": folded, "bare": bare}


@pytest.fixture(scope="module")
def paths(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    paths = {name: folder / f"{name}.onnx" for name in models}
    for name, model in models.items():
        part = GraphPart(model.eval(), {"images": make_images(2)}, {"images": {0: "batch"}}, ("logits",))
        write_graph(part, paths[name])
    return paths


def test_operators_of_norms(models: dict[str, nn.Module], paths: dict[str, Path]) -> None:
    sites = [name for name, module in models["un"].named_modules() if is_norm(module)]
    found = {name: count_operators(path, sites) for name, path in paths.items()}
    assert found["layernorm"]["LayerNormalization"] == len(sites) == 3
    assert found["un"] == {"Mul": 3, "Add": 3}
    assert found["folded"] == {}
    assert count_operators(paths["folded"]) == count_operators(paths["bare"])


@pytest.mark.parametrize("count", [1, 5])
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
    output = tmp_path / "int8.onnx"
    quantize_graph(paths["folded"], output, [{"images": make_images(examples, seed=1)}] if examples else None)
    kinds = {"QuantizeLinear"} if examples else {"MatMulInteger", "DynamicQuantizeLinear"}
    assert kinds <= count_operators(output).keys()
    images = make_images(32, seed=2)
    (logits,) = GraphSession(output)(images)
    with torch.no_grad():
        expected = models["folded"](images)
    error = float((logits - expected).norm() / expected.norm())
    assert 1e-6 < error < 0.1
