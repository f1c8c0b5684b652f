"""Norms that surgery also puts into MLPs, between the first layer and the activation."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import GluMlp, Mlp
from torch import nn

from un.folding import fold_norms
from un.norms import BatchNorm, FeedForwardBatchNorm, ScaleNorm
from un.surgery import replace_norms, share_pad_mask

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "t2t_vit_7": {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 3},
}


class Block(nn.Module):
    """A pre-norm MLP."""

    def __init__(self, mlp=Mlp, width=8):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), mlp(width, 4 * width)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_mlp_gets_a_norm_that_folds_into_its_first_layer(name):
    import un.vision.t2t_vit  # noqa: F401  registers its models

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **MODELS[name])
    layers = [place for place, module in model.named_modules() if place.endswith("mlp.fc1")]
    report = replace_norms(model, partial(FeedForwardBatchNorm, momentum=0.5))
    assert [row.site for row in report.added] == layers
    assert "put into MLPs" in str(report)
    images = torch.randn(8, 3, 32, 32)
    for _ in range(2):
        model(images)
    for place in layers:
        norm = model.get_submodule(f"{place}.norm")
        assert isinstance(norm, FeedForwardBatchNorm)
        assert norm.num_batches_tracked == 2
    folded, fold_report = fold_norms(model.eval(), (images[:2],), on_unfoldable="raise")
    rules = {row.site: row.rule for row in fold_report.rows}
    assert all(rules[f"{place}.norm"] == "R3" for place in layers)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-4)


def test_a_norm_in_an_mlp_sees_what_the_activation_sees():
    block, x = Block(), torch.randn(4, 5, 8)
    replace_norms(block, FeedForwardBatchNorm)
    nn.init.normal_(block.mlp.fc1.norm.weight)
    hidden = block.mlp.fc1.linear(block.norm(x))
    expected = x + block.mlp.fc2(block.mlp.act(block.mlp.fc1.norm(hidden)))
    torch.testing.assert_close(block(x), expected)
    norm = block.mlp.fc1.norm
    norm.reset_parameters()
    mask = torch.rand(4, 5) < 0.5
    with share_pad_mask(block, mask):
        block(x)
    hidden = block.mlp.fc1.linear(block.norm(x, mask))
    torch.testing.assert_close(norm.running_mean, 0.1 * hidden[~mask].mean(0))


def test_include_and_exclude_choose_among_mlps():
    model = nn.Sequential(Block(), Block())
    report = replace_norms(model, FeedForwardBatchNorm, exclude="1.mlp.*")
    assert [row.site for row in report.added] == ["0.mlp.fc1"]
    assert len(report.rows) == 2
    assert isinstance(model[1].mlp.fc1, nn.Linear)


def test_of_several_norms_only_those_for_mlps_go_there():
    model = nn.Sequential(Block(), Block())
    report = replace_norms(model, {"0.*": FeedForwardBatchNorm, "1.*": BatchNorm})
    assert [row.site for row in report.added] == ["0.mlp.fc1"]


def test_layers_of_torch_and_gated_mlps():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    report = replace_norms(model, FeedForwardBatchNorm)
    assert [row.site for row in report.added] == ["linear1"]
    assert model.eval()(torch.randn(2, 3, 8)).shape == (2, 3, 8)
    report = replace_norms(nn.Sequential(Block(), Block(GluMlp)), FeedForwardBatchNorm)
    assert "1.mlp.fc1 got no norm behind it: it gives 32 channels, of which fc2 takes 16" in str(report)


def test_a_model_without_mlps_is_refused_and_untouched():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match=r"^Sequential has no MLP to put a norm into: no module with"):
        replace_norms(model, FeedForwardBatchNorm)
    assert isinstance(model[1], nn.LayerNorm)


def test_scalenorm_and_the_weights_of_other_norms():
    """Its scalar stands for a weight of one value, and cannot take one of several."""
    model = nn.Sequential(nn.LayerNorm(4))
    replace_norms(model, ScaleNorm)
    nn.init.constant_(model[0].scale, 6.0)
    x = torch.randn(5, 4)
    expected = model(x)
    replace_norms(model, partial(nn.RMSNorm, eps=0.0))
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match=r"^0: ScaleNorm has no weight .* carry_affine=False$"):
        replace_norms(model, ScaleNorm)
