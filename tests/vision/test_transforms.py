import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torchvision.transforms.v2.functional import crop, pad, resize

from tests.configs.test_experiments import compose_config
from un.vision.transforms import BatchTransform, ImageTransform, crop_at_random


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def draw(count, size=6, channels=3):
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=seeded(1))


def test_crop_is_one_of_all_shifts_and_each_comes_equally_often():
    image = draw(1)
    shifts = [crop(pad(image, [1] * 4), top, left, 6, 6)[0] for top in range(3) for left in range(3)]
    cropped = crop_at_random(image.expand(9000, -1, -1, -1), 1, seeded())
    counts = torch.tensor([(cropped == shift).flatten(1).all(1).sum() for shift in shifts])
    assert counts.sum() == 9000
    assert ((counts - 1000).abs() < 130).all()  # 4 standard deviations


@pytest.mark.parametrize("flip", [0.5, 1.0])
def test_flip_has_the_probability_asked_for(flip):
    images = draw(1).expand(2000, -1, -1, -1)
    transform = BatchTransform([0.0] * 3, [1 / 255] * 3, flip=flip)
    flipped = (transform(images, seeded()) == images.flip(-1)).flatten(1).all(1).float().mean()
    assert abs(flipped - flip) < 0.05


def test_normalises_and_is_deterministic_without_a_generator():
    images = draw(4)
    before = images.clone()
    transform = BatchTransform([0.1, 0.2, 0.3], [0.5, 0.6, 0.7], crop_padding=2, flip=0.5)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    torch.testing.assert_close(transform(images), (images.float() / 255 - mean) / std)
    assert torch.equal(transform(images, seeded()), transform(images, seeded()))
    assert not torch.equal(transform(images, seeded()), transform(images, seeded(1)))
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": [0.0]}, r"mean=\[0.5\] and std=\[0.0\] must have a value per channel, std above 0"),
        ({"flip": 2}, "crop_padding=0 must be at least 0 and flip=2 between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchTransform(**{"mean": [0.5], "std": [0.5], **options})


def test_resizes_as_pillow_does():
    images = draw(2, size=32)
    transform = BatchTransform([0.0] * 3, [1 / 255] * 3, image_size=224)
    resized = transform(images)
    assert resized.shape == (2, 3, 224, 224)
    pillow = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BILINEAR)
    assert (resized[0] - torch.from_numpy(np.array(pillow)).permute(2, 0, 1)).abs().max() <= 2


def test_evaluation_of_single_images_resizes_then_crops_the_centre():
    image = Image.fromarray(draw(1, size=300)[0].permute(1, 2, 0).numpy())
    transform = ImageTransform(224, crop_pct=0.9, mean=(0.0,) * 3, std=(1.0,) * 3)
    shorter = resize(image, 248, interpolation=3)  # floor(224 / 0.9), bicubic
    expected = np.array(crop(shorter, 12, 12, 224, 224)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(transform(image, training=False).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("recipe", ["imagenet_t2t_vit_14", "imagenet_deit_small", "imagenet_swin_tiny"])
def test_crops_and_flips_with_the_published_ranges(recipe):
    crop, flip = instantiate(compose_config(f"experiment={recipe}").data.transform).train.transforms[:2]
    assert (crop.scale, crop.ratio) == ((0.08, 1.0), pytest.approx((3 / 4, 4 / 3)))
    assert crop.size == (224, 224)
    assert flip.p == 0.5
