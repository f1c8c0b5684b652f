import itertools

import numpy as np
import pytest
import torch

from un.vision.batches import EpochSampler
from un.vision.transforms import ImageTransform


def list_indices(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [batch.tolist() for batch in sampler.list_batches()]


def make_ranks(world_size, *arguments, **options):
    return [EpochSampler(*arguments, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def test_training_order_is_a_permutation_that_depends_on_seed_and_epoch():
    sampler = EpochSampler(50, 8, training=True, seed=3)
    first = list_indices(sampler)
    assert [len(batch) for batch in first] == [8] * 6  # the last two are dropped
    assert len(set(itertools.chain(*first))) == 48
    assert first == list_indices(EpochSampler(50, 8, training=True, seed=3))
    assert first != list_indices(sampler, 1)
    assert first != list_indices(EpochSampler(50, 8, training=True, seed=4))


def test_epochs_drop_different_examples():
    sampler = EpochSampler(50, 8, training=True)
    dropped = [set(range(50)) - set(itertools.chain(*list_indices(sampler, epoch))) for epoch in range(10)]
    assert len(set(map(frozenset, dropped))) > 5


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_together_make_the_batches_of_one(world_size):
    whole = list_indices(EpochSampler(50, 8, training=True), 5)
    parts = [list_indices(rank, 5) for rank in make_ranks(world_size, 50, 8 // world_size, training=True)]
    for batch, *shards in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(itertools.chain(*shards))


@pytest.mark.parametrize(("count", "size", "world_size"), [(50, 8, 1), (50, 8, 3), (17, 4, 2), (7, 8, 4), (1, 8, 1)])
def test_evaluation_sees_every_example_once_in_equally_many_batches(count, size, world_size):
    shards = [list_indices(rank) for rank in make_ranks(world_size, count, size, training=False)]
    assert sorted(itertools.chain(*itertools.chain(*shards))) == list(range(count))
    assert len({len(shard) for shard in shards}) == 1
    assert all(0 < len(batch) <= size for shard in shards for batch in shard)


def test_repeated_augmentation_gives_copies_to_different_processes():
    ranks = make_ranks(3, 60, 4, training=True, num_repeats=3)
    shards = [list(itertools.chain(*list_indices(rank))) for rank in ranks]
    assert shards[0] == shards[1] == shards[2]  # three copies in a row, one to each
    assert len(shards[0]) * 3 == 60
    assert len(set(shards[0])) == 20


def test_too_few_examples():
    with pytest.raises(ValueError, match=r"7 examples are too few for data.batch_size=4 on 2"):
        EpochSampler(7, 4, training=True, world_size=2)
    with pytest.raises(ValueError, match="1 examples are too few"):
        EpochSampler(1, 4, training=False, world_size=2)


def collect(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [(images.clone(), labels.tolist()) for images, labels in loader]


def same(left, right):
    return all(torch.equal(a, c) and b == d for (a, b), (c, d) in zip(left, right, strict=True))


@pytest.fixture(params=["memory", "workers"])
def data(request, make_data, parquet_folder):
    augmentation = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}
    options = {} if request.param == "memory" else {"transform": ImageTransform(12, **augmentation), "num_workers": 1}
    return make_data(parquet_folder, **options)


def test_batch_depends_on_seed_epoch_and_number_only(data):
    loader = data.train_dataloader()
    assert len(loader) == 6
    whole = collect(loader, 1)
    np.random.default_rng(0).random()
    torch.rand(1)
    assert same(whole, collect(data.train_dataloader(), 1))
    assert not same(whole, collect(loader, 0))
    for start in (4, 6):
        resumed = data.train_dataloader()
        resumed.load_state_dict({"epoch": 1, "batch": start, "num_batches": 6})
        assert same(whole[start:], collect(resumed, 1))
        assert same(whole, collect(resumed, 1))  # the state counts once


def test_state_is_that_of_the_batches_handed_out(data):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    assert loader.state_dict()["batch"] == 0
    for count in range(1, 7):
        next(batches)
        assert loader.state_dict() == {"epoch": 2, "batch": count, "num_batches": 6}
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert same(collect(resumed, 3), collect(data.train_dataloader(), 3))  # next epoch: from its start


def test_state_of_other_batches_is_refused(data):
    with pytest.raises(ValueError, match="written with 5 batches per epoch, this run has 6"):
        data.train_dataloader().load_state_dict({"epoch": 0, "batch": 1, "num_batches": 5})


def test_loading_leaves_the_global_random_states_alone(make_data, parquet_folder):
    data = make_data(parquet_folder, transform=ImageTransform(12, auto_augment="rand-m9-mstd0.5-inc1"))
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    next(iter(data.train_dataloader()))
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()


def test_workers_change_nothing(make_data, class_folder):
    options = {"transform": ImageTransform(16, auto_augment="rand-m9"), "val_split": "validation", "batch_size": 4}
    options |= {"image_column": "image", "num_classes": None}
    alone, helped = (make_data(class_folder, num_workers=count, **options) for count in (0, 2))
    assert same(collect(alone.train_dataloader()), collect(helped.train_dataloader()))


def test_copies_of_an_image_are_augmented_apart(make_data, class_folder):
    options = {"transform": ImageTransform(16, auto_augment="rand-m9"), "val_split": "validation", "batch_size": 4}
    options |= {"image_column": "image", "num_classes": None, "num_repeats": 4}
    images, labels = next(iter(make_data(class_folder, **options).train_dataloader()))
    assert len(set(labels.tolist())) == 1
    assert len({image.numpy().tobytes() for image in images}) == 4
