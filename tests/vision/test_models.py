import pytest
import torch

from un.vision.models import create_model, list_head_parameters


def test_any_timm_argument_is_taken():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "in_chans": 1}
    model = create_model("vit_tiny_patch16_224", **sizes)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 1000)
    assert len(model.blocks) == 2


def test_image_size_is_left_out_where_it_has_no_meaning():
    assert create_model("convnext_atto", img_size=64, num_classes=3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_class_token_starts_as_asked():
    torch.manual_seed(0)
    for std, expected in {None: 1e-6, 0.02: 0.02}.items():  # timm's own, and DeiT's
        token = create_model("deit_small_patch16_224", img_size=32, depth=1, class_token_std=std).cls_token
        assert token.std().item() == pytest.approx(expected, rel=0.2)
    with pytest.raises(ValueError, match=r"model.class_token_std=0.02, but model 'swin_tiny.*' has no class token"):
        create_model("swin_tiny_patch4_window7_224", class_token_std=0.02)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"model.name='vit_tinny_patch16_224' is not known to timm; nearest: vit_tiny"):
        create_model("vit_tinny_patch16_224")
    with pytest.raises(ValueError, match=r"timm.list_models"):
        create_model("????")


@pytest.mark.parametrize("arguments", [{"depht": 3}, {"embed_dim": 10, "num_heads": 3}])
def test_wrong_arguments_are_told_in_one_line(arguments):
    with pytest.raises(ValueError, match="model 'vit_tiny_patch16_224' cannot be built with") as caught:
        create_model("vit_tiny_patch16_224", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", ["head.weight", "head.bias"]),
        ("deit_tiny_distilled_patch16_224", ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]),
        ("swin_tiny_patch4_window7_224", ["head.fc.weight", "head.fc.bias"]),
        ("t2t_vit_7", ["head.weight", "head.bias"]),
    ],
)
def test_head_parameters(name, expected):
    with torch.device("meta"):
        assert list_head_parameters(create_model(name)) == expected
