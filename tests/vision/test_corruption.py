"""Test images under shift."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from un.vision.transforms import ImageTransform


def add_noise(image):
    return functional.gaussian_noise(image, sigma=0.1)


def darken(image):
    return 0.5 * image


def collect(data, split="test"):
    return torch.cat([images for images, _ in data.make_loader(split, training=False)])


def test_of_the_test_images_alone_and_before_normalisation(make_data, parquet_folder):
    plain, dark = (make_data(parquet_folder, corruption=corruption) for corruption in (None, darken))
    assert torch.equal(collect(plain, "val"), collect(dark, "val"))
    pixels, darkened = (0.5 + 0.25 * collect(data) for data in (plain, dark))
    torch.testing.assert_close(darkened, 0.5 * pixels)


def test_what_is_drawn_depends_on_the_image_only(make_data, parquet_folder):
    noisy = [collect(make_data(parquet_folder, corruption=add_noise, batch_size=size)) for size in (3, 8, 8)]
    plain = collect(make_data(parquet_folder))
    assert torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy[1], noisy[2])
    differences = noisy[0] - plain
    assert 0.2 < float(differences.std()) < 0.4  # 0.1 / 0.25, less what is cut off at black and white
    assert not torch.allclose(differences[0], differences[1], atol=0.1)


def test_the_global_random_state_stays(make_data, parquet_folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    collect(make_data(parquet_folder, corruption=add_noise))
    assert torch.equal(torch.get_rng_state(), before)


def test_from_a_batch_on(make_data, parquet_folder):
    """As a loader that resumes asks for them."""
    data = make_data(parquet_folder, corruption=add_noise)
    loader = data.make_loader("test", training=False)
    later = list(loader.make_batches(1))
    assert len(later) == len(loader) - 1
    assert torch.equal(torch.cat([images for images, _ in later]), collect(data)[-sum(len(y) for _, y in later) :])


def test_images_that_are_not_kept_in_memory(make_data, parquet_folder):
    transform = ImageTransform(image_size=12, crop_pct=1.0, mean=[0.5] * 3, std=[0.25] * 3)
    plain, dark = (make_data(parquet_folder, transform=transform, corruption=kind) for kind in (None, darken))
    torch.testing.assert_close(0.5 + 0.25 * collect(dark), 0.5 * (0.5 + 0.25 * collect(plain)))


def test_another_shape_is_refused(make_data, parquet_folder):
    data = make_data(parquet_folder, corruption=lambda image: image[:1])
    with pytest.raises(ValueError, match=r"data.corruption makes \[1, 12, 12\] of an image of shape \[3, 12, 12\]"):
        collect(data)
