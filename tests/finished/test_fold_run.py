"""Folded checkpoints: they load into a model of the plain class, whatever the fold changed in it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.folding.helpers import make_model, make_tokens, randomize
from tests.training.toy import ToyModel, ToyTask
from tests.translation import tiny
from un.command.errors import UserError
from un.finished.fold_run import require_inference
from un.folding import ScaleShift, fold_norms, load_folded, save_folded
from un.folding.verify import list_tensors
from un.norms import BatchNorm, UnifiedNorm
from un.surgery import replace_norms

build_vit = partial(
    timm.create_model,
    "vit_tiny_patch16_224",
    **{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1, "num_classes": 3},
)
IMAGES = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def write(path: Path, model: nn.Module, folded: nn.Module) -> Path:
    save_folded(path, model, folded)
    return path


def check_loads(
    path: Path, build: Callable[[], nn.Module], inputs: tuple, norm: Callable[..., nn.Module] | None = UnifiedNorm
) -> Any:
    """Folds, writes, loads into the plain model and compares; returns the loaded model."""
    trained, plain = build(), build()
    if norm is not None:
        replace_norms(trained, norm)
    folded, _ = fold_norms(randomize(trained), inputs)
    loaded = load_folded(write(path / "folded.ckpt", trained, folded), plain)
    with torch.no_grad():
        expected, actual = (list_tensors(model(*inputs)) for model in (folded, loaded))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert loaded is plain
    assert not loaded.training
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in folded.named_parameters()}
    return loaded


def test_a_plain_model_takes_the_folded_checkpoint(tmp_path: Path) -> None:
    loaded = check_loads(tmp_path, partial(build_vit, qkv_bias=False), IMAGES)
    assert not any(isinstance(module, nn.LayerNorm | UnifiedNorm) for module in loaded.modules())
    assert loaded.blocks[0].attn.qkv.bias.requires_grad  # it came with the fold


def test_layernorm_keeps_no_affine_part(tmp_path: Path) -> None:
    assert check_loads(tmp_path, build_vit, IMAGES, norm=None).blocks[0].norm1.weight is None


def test_fused_kernels_do_not_compute_layernorm_again(tmp_path: Path) -> None:
    """Those of torch's own layer run in inference, whatever stands in a norm's place."""

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model.head(model.encoder(x))

    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        return make_model(forward, encoder=nn.TransformerEncoder(layer, 1), head=nn.Linear(8, 4))

    check_loads(tmp_path, build, make_tokens(), BatchNorm)


def test_a_norm_that_stays_as_multiply_add(tmp_path: Path) -> None:
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model.head(torch.tanh(model.norm(x)))

    def build() -> nn.Module:
        return make_model(forward, norm=nn.LayerNorm(8), head=nn.Linear(8, 4))

    loaded = check_loads(tmp_path, build, make_tokens(), BatchNorm)
    assert isinstance(loaded.norm, ScaleShift)
    assert loaded.norm.shift is not None


def test_a_tied_projection_comes_back_untied(tmp_path: Path) -> None:
    batch = tiny.make_batch(tiny.draw_sentences(4))["net_input"]
    inputs = (batch["src_tokens"], batch["src_lengths"], batch["prev_output_tokens"])
    loaded = check_loads(tmp_path, tiny.make_model, inputs, BatchNorm)
    assert loaded.decoder.output_projection.weight is not loaded.decoder.embed_tokens.weight
    assert loaded.encoder.embed_tokens.weight is loaded.decoder.embed_tokens.weight


def test_other_files_and_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folded.ckpt: no such checkpoint"):
        load_folded(tmp_path, build_vit())
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    with pytest.raises(
        ValueError, match=r"best.ckpt is not a folded checkpoint as scripts/fold.py and save_folded write it"
    ):
        load_folded(tmp_path / "best.ckpt", build_vit())
    model = build_vit()
    replace_norms(model, UnifiedNorm)
    path = write(tmp_path / "folded.ckpt", model, fold_norms(randomize(model), IMAGES)[0])
    for depth in (1, 3):
        with pytest.raises(ValueError, match=r"folded.ckpt is of another model"):
            load_folded(path, build_vit(depth=depth))


def test_a_task_that_offers_nothing_to_fold_is_named() -> None:
    with pytest.raises(UserError, match="ToyTask cannot be folded or exported: it has no make_fold_inputs, cut_graph"):
        require_inference(ToyTask(ToyModel(3), optimizer=None))
