"""T2T-ViT against the recorded official code, and as a timm model."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import nn

from un.norms import UnifiedNorm
from un.vision.t2t_vit import TokensToTokenViT
from un.vision.tokens_to_token import TokenAttention, TokenPerformer

GOLDEN = Path(__file__).parents[1] / "golden" / "t2t_vit"
GOLDEN_NORMS = {
    "performer_ln": nn.LayerNorm,
    "performer_un": partial(UnifiedNorm, window=4, warmup_steps=10, filtration=True),
}
# The small model of the recorded vectors.
SIZE = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 3.0, "token_dim": 16}
SMALL = {"img_size": 32, "num_classes": 7, **SIZE}
# arXiv 2101.11986 and the official code, in millions; fixed tables are counted.
PUBLISHED_SIZES = {
    "t2t_vit_7": 4.3,
    "t2t_vit_10": 5.9,
    "t2t_vit_12": 6.9,
    "t2t_vit_14": 21.5,
    "t2t_vit_19": 39.2,
    "t2t_vit_24": 64.1,
    "t2t_vit_t_14": 21.5,
    "t2t_vit_t_19": 39.2,
    "t2t_vit_t_24": 64.1,
}


def build_small(name: str = "t2t_vit_7", seed: int = 0, **arguments) -> TokensToTokenViT:
    torch.manual_seed(seed)
    return timm.create_model(name, **{**SMALL, **arguments})


def make_images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 32, 32), generator=torch.Generator().manual_seed(seed))


def assert_relatively_close(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    reference = torch.from_numpy(expected)
    assert actual.shape == reference.shape
    assert (actual - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("name", GOLDEN_NORMS)
def test_agrees_with_the_official_code(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    model = build_small(norm_layer=GOLDEN_NORMS[name]).eval()
    state = {key.removeprefix("sd."): torch.from_numpy(golden[key]) for key in golden.files if key.startswith("sd.")}
    ours = {key: value.shape for key, value in model.state_dict().items() if not key.endswith("nonfinite_counter")}
    assert ours == {key: value.shape for key, value in state.items()}
    torch.testing.assert_close(model.pos_embed.data, state["pos_embed"])
    model.load_state_dict(state)

    images = torch.from_numpy(golden["x"]).requires_grad_()
    tokens = model.forward_features(images)
    logits = model.forward_head(tokens)
    logits.square().sum().backward()

    assert_relatively_close(model.forward_head(tokens, pre_logits=True), golden["features"])
    assert_relatively_close(logits, golden["logits"])
    assert_relatively_close(images.grad, golden["grad_x"])


def test_has_the_published_size():
    with torch.device("meta"):
        models = {name: timm.create_model(name) for name in timm.list_models("t2t_vit_*")}
    sizes = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in models.items()}
    assert sizes == pytest.approx(PUBLISHED_SIZES, abs=0.05)


def test_input_and_output_are_known_to_timm():
    with torch.device("meta"):
        model = timm.create_model("t2t_vit_7", depth=1)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert model.tokens_to_token.num_patches == 196
    config = resolve_model_data_config(model)
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bicubic")
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_every_norm_is_a_module_with_a_name():
    with torch.device("meta"):
        model = timm.create_model("t2t_vit_14", norm_layer=UnifiedNorm)
    sites = {name for name, module in model.named_modules() if isinstance(module, UnifiedNorm)}
    tokens = {f"tokens_to_token.attention{layer}.norm{place}" for layer in (1, 2) for place in (1, 2)}
    assert sites == tokens | {f"blocks.{block}.norm{place}" for block in range(14) for place in (1, 2)} | {"norm"}


@pytest.mark.parametrize(("img_size", "in_chans", "tokens"), [((32, 64), 3, 8), ((8, 8), 1, 1), ((30, 30), 3, 4)])
def test_position_table_follows_the_image_size(img_size, in_chans, tokens):
    model = build_small(img_size=img_size, in_chans=in_chans)
    images = make_images(2, in_chans, *img_size)
    assert model.pos_embed.shape == (1, tokens + 1, 48)
    assert model.forward_features(images).shape == (2, tokens + 1, 48)
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_training_moves_all_but_the_fixed_tables(name):
    """Even where a whole model is unfrozen."""
    model = build_small(name, drop_path_rate=0.1).train().requires_grad_(True)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    loss = nn.functional.cross_entropy(model(make_images(16, 3, 32, 32)), torch.arange(16) % 7)
    loss.backward()
    optimizer.step()
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    kernels = {"tokens_to_token.attention1.w", "tokens_to_token.attention2.w"} if name == "t2t_vit_7" else set()
    assert still == {"pos_embed"} | kernels


def test_performer_is_the_quadratic_form_of_its_kernel():
    torch.manual_seed(0)
    layer = TokenPerformer(27, 16).double().eval()
    torch.testing.assert_close(layer.w @ layer.w.T, 8 * torch.eye(8, dtype=torch.float64), atol=1e-5, rtol=0)
    queries, keys, values = torch.randn(3, 2, 11, 16, dtype=torch.float64)
    pairs = queries[:, :, None] + keys[:, None]  # (B, N, N, C)
    norms = (queries.square().sum(-1)[:, :, None] + keys.square().sum(-1)[:, None]) / 2
    kernel = (pairs @ layer.w.T - norms[..., None]).exp().sum(-1) / 8
    expected = kernel @ values / (kernel.sum(dim=-1, keepdim=True) + 1e-8)
    torch.testing.assert_close(layer._attend(queries, keys, values), expected)


def test_performer_keeps_float32_under_autocast():
    layer = TokenPerformer(27, 16).eval()
    queries, keys, values = torch.randn(3, 2, 11, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer._attend(queries, keys, values)
        assert layer(torch.randn(2, 11, 27)).dtype == torch.bfloat16
    assert torch.equal(inside, layer._attend(queries, keys, values))


def test_token_attention_scales_by_the_input_width():
    layer = TokenAttention(27, 16).double()
    x = torch.randn(2, 11, 27, dtype=torch.float64)
    queries, keys, values = layer.qkv(x).split(16, dim=-1)
    weights = (queries @ keys.transpose(1, 2) * 27**-0.5).softmax(dim=-1)
    torch.testing.assert_close(layer(x), values + layer.proj(weights @ values))


def test_float64_agrees_with_float32_and_compiled_with_eager():
    model, images = build_small(depth=1).eval(), make_images()
    single = model(images)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), single)
    double = model.double()(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=1e-4)


def test_qk_scale_is_a_factor_on_the_queries():
    plain, scaled = build_small().eval(), build_small(qk_scale=48**-0.5).eval()
    assert not torch.allclose(plain(make_images()), scaled(make_images()), atol=1e-6)
    for block in plain.blocks:
        block.attn.qkv.weight.data[:48] *= (48 / 12) ** -0.5
    torch.testing.assert_close(plain(make_images()), scaled(make_images()))


def test_checkpointed_gradients_are_the_same():
    gradients = []
    for enable in (False, True):
        model = build_small("t2t_vit_t_14").train()
        model.set_grad_checkpointing(enable)
        model(make_images()).square().sum().backward()
        gradients.append({key: value.grad for key, value in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_head_can_be_replaced_and_read():
    model = build_small().double()
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.get_classifier() is model.head
    assert model(make_images().double()).shape == (2, 3)
    model.reset_classifier(0, global_pool="avg")
    tokens = model.forward_features(make_images().double())
    torch.testing.assert_close(model.forward_head(tokens), tokens[:, 1:].mean(dim=1))
    assert model.num_features == 48


def test_layer_decay_orders_the_layers():
    model = build_small()
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.0, layer_decay=0.5).param_groups
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    modules = (model.tokens_to_token.project, model.blocks[0].norm1, model.blocks[1].norm1, model.norm, model.head)
    assert [scales[id(module.weight)] for module in modules] == [0.125, 0.25, 0.5, 0.5, 1.0]


def test_loads_official_checkpoint_files(tmp_path):
    source = build_small(seed=1).eval()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict_ema": state, "epoch": 309}, tmp_path / "model.pth.tar")
    model = build_small(seed=2, checkpoint_path=str(tmp_path / "model.pth.tar")).eval()
    torch.testing.assert_close(model(make_images()), source(make_images()))


def test_another_number_of_classes_gets_a_new_head(tmp_path):
    source = build_small(seed=1, num_classes=1000).eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "model.pth")
    overlay = {"file": str(tmp_path / "model.pth")}
    model = build_small(seed=2, num_classes=10, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert model(make_images()).shape == (2, 10)
    torch.testing.assert_close(model.forward_features(make_images()), source.forward_features(make_images()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens_type": "convolution"}, "tokens_type must be one of performer, transformer, got 'convolution'"),
        ({"num_heads": 5}, "embed_dim must be a multiple of num_heads, got 48 and 5"),
        ({"img_size": 2}, r"img_size must be at least 3 pixels in both directions, got \(2, 2\)"),
    ],
)
def test_refuses_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_small(**arguments)


def test_refuses_images_of_another_size():
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 32, 32\), got \(2, 3, 64, 64\)"):
        build_small()(make_images(2, 3, 64, 64))
