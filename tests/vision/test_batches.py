import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from un.vision.batches import EpochSampler
from un.vision.transforms import ImageTransform


def list_indices(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [batch.tolist() for batch in sampler.list_batches()]


def list_shards(world_size, *arguments, epoch=0, **options):
    """Returns the batches of every process."""
    ranks = [EpochSampler(*arguments, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    shards = [list_indices(rank, epoch) for rank in ranks]
    assert {len(rank) for rank in ranks} == {len(shard) for shard in shards}
    return shards


def chain(shards):
    return [index for shard in shards for batch in shard for index in batch]


def test_training_order_is_a_permutation_that_depends_on_seed_and_epoch():
    sampler = EpochSampler(50, 8, training=True, seed=3)
    first = list_indices(sampler)
    assert [len(batch) for batch in first] == [8] * 6  # the last two are dropped
    assert len(set(chain([first]))) == 48
    assert first == list_indices(EpochSampler(50, 8, training=True, seed=3))
    assert first != list_indices(EpochSampler(50, 8, training=True, seed=4))
    used = {frozenset(chain([list_indices(sampler, epoch)])) for epoch in range(10)}
    assert len(used) > 5  # epochs drop different examples


def test_processes_together_make_the_batches_of_one():
    whole = list_indices(EpochSampler(50, 8, training=True), 5)
    parts = list_shards(4, 50, 2, training=True, epoch=5)
    for batch, *shards in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(itertools.chain(*shards))


@pytest.mark.parametrize(("count", "size", "world_size"), [(50, 8, 3), (17, 4, 2), (1, 8, 1)])
def test_evaluation_sees_every_example_once_in_equally_many_batches(count, size, world_size):
    shards = list_shards(world_size, count, size, training=False)
    assert sorted(chain(shards)) == list(range(count))
    assert all(0 < len(batch) <= size for shard in shards for batch in shard)


@pytest.mark.parametrize(
    ("num_repeats", "accumulation", "world_size"), [(3, 8, 1), (3, 2, 4), (3, 1, 8), (1, 2, 4), (1, 1, 8)]
)
def test_copies_are_dealt_to_accumulated_batches_as_to_processes(num_repeats, accumulation, world_size):
    """Eight batches of four make an update of 32 places; copies of an image are in none of them twice."""
    options = {"num_repeats": num_repeats, "accumulation": accumulation}
    shards = list_shards(world_size, 100, 4, training=True, **options)
    assert all(len(set(batch)) == 4 for shard in shards for batch in shard)
    assert [len(shard) for shard in shards] == [3 * accumulation] * world_size  # 96 of 100 places, whole updates
    # Place n of an update goes to batch n mod 8, counted through the processes first.
    permutation = np.random.default_rng((0, 0)).permutation(100)
    for update, batch, rank in itertools.product(range(3), range(accumulation), range(world_size)):
        places = [32 * update + 8 * row + batch * world_size + rank for row in range(4)]
        expected = [permutation[place // num_repeats] for place in places]
        assert shards[rank][update * accumulation + batch] == expected


def test_an_update_with_fewer_batches_than_copies_is_left_out():
    """26 batches of 4: six updates of 4, and 2 batches, where 3 copies of an image would have to share."""
    assert len(EpochSampler(104, 4, training=True, num_repeats=3, accumulation=4)) == 24
    assert len(EpochSampler(108, 4, training=True, num_repeats=3, accumulation=4)) == 27
    assert len(EpochSampler(104, 4, training=True, accumulation=4)) == 26


def test_imagenet_epochs_have_the_published_updates():
    """T2T-ViT, Swin and DeiT on 8 GPUs, of which each gets an eighth of the images."""
    assert len(EpochSampler(1281167, 64, training=True, world_size=8)) == 2502
    assert len(EpochSampler(1281167, 128, training=True, world_size=8)) == 1251
    assert len(EpochSampler(1281167, 128, training=True, world_size=8, num_repeats=3)) == 1251


def test_left_over_batches_make_an_update_of_their_own():
    """The same on one GPU that accumulates 8 batches; with copies, there are whole updates only."""
    assert len(EpochSampler(1281167, 64, training=True, accumulation=8)) == 8 * 2502 + 2
    assert len(EpochSampler(1281167, 128, training=True, accumulation=8)) == 8 * 1251 + 1
    assert len(EpochSampler(1281167, 128, training=True, accumulation=8, num_repeats=3)) == 8 * 1251


@pytest.mark.parametrize(("count", "world_size", "last"), [(50, 1, 2), (51, 2, 1), (49, 2, 8)])
def test_last_batch_is_kept_when_asked(count, world_size, last):
    """With two processes a single left-over example is dropped: they go in step and weigh the same."""
    shards = list_shards(world_size, count, 8, training=True, drop_last=False)
    assert {len(shard) for shard in shards} == {-(-(count // world_size) // 8)}
    assert all(len(shard[-1]) == last for shard in shards)
    assert len(chain(shards)) == len(set(chain(shards))) == count // world_size * world_size


def test_last_update_is_shared_out_evenly():
    """28 examples in batches of 8, two to an update: 8, 8, and the 12 that remain as 6, 6."""
    sampler = EpochSampler(28, 8, training=True, drop_last=False, accumulation=2)
    assert [len(batch) for batch in list_indices(sampler)] == [8, 8, 6, 6]
    assert [len(batch) for batch in list_indices(EpochSampler(28, 8, training=True, accumulation=2))] == [8, 8, 8]


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


AUGMENTATION = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}


@pytest.mark.parametrize("options", [{}, {"transform": ImageTransform(12, **AUGMENTATION)}], ids=["memory", "single"])
def test_batch_depends_on_seed_epoch_and_number_only(make_data, parquet_folder, options):
    data = make_data(parquet_folder, **options)
    loader = data.train_dataloader()
    assert len(loader) == 6
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    whole = collect(loader, 1)
    assert torch.equal(torch.rand(3), expected[0])  # the global random states are left alone
    assert (np.random.rand(3) == expected[1]).all()
    assert same(whole, collect(data.train_dataloader(), 1))
    assert not same(whole, collect(loader, 0))
    for start in (4, 6):
        resumed = data.train_dataloader()
        resumed.load_state_dict({"epoch": 1, "batch": start, "num_batches": 6})
        assert same(whole[start:], collect(resumed, 1))


def test_workers_change_nothing(make_data, parquet_folder):
    options = {"transform": ImageTransform(12, **AUGMENTATION), "batch_size": 4}
    alone, helped = (make_data(parquet_folder, num_workers=count, **options) for count in (0, 2))
    whole, resumed = collect(alone.train_dataloader(), 1), helped.train_dataloader()
    resumed.load_state_dict({"epoch": 1, "batch": 5, "num_batches": 12})
    assert same(whole[5:], collect(resumed, 1))


def test_copies_of_an_image_are_augmented_apart(make_data):
    data = make_data(transform=ImageTransform(12, auto_augment="rand-m9"), limit=16, batch_size=4, num_repeats=4)
    data.trainer = SimpleNamespace(accumulate_grad_batches=4, world_size=1, global_rank=0, overfit_batches=0)
    copies = list(data.train_dataloader())[:4]
    assert len({tuple(labels.tolist()) for _, labels in copies}) == 1
    for four in zip(*(images for images, _ in copies), strict=True):
        assert len({image.numpy().tobytes() for image in four}) == 4


def test_loaders_follow_the_processes_of_the_trainer(make_data):
    seen = []
    for rank in range(2):
        data = make_data(limit=32, batch_size=4)
        data.trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=2, global_rank=rank, overfit_batches=0)
        seen.append([list_indices(loader.sampler) for loader in (data.train_dataloader(), data.test_dataloader())])
    for name, left, right in zip(("train", "test"), *seen, strict=True):
        assert len(left) == len(right) == 4, name
        assert sorted(chain([left, right])) == list(range(32))


def test_copies_that_would_meet_in_a_batch_are_switched_off_with_a_line(make_data, caplog):
    make_data(limit=24).train_dataloader()
    assert not caplog.text
    sampler = make_data(num_repeats=3, limit=24, batch_size=8).train_dataloader().sampler
    assert len(set(chain([list_indices(sampler)]))) == 24
    assert "data.num_repeats=3 is switched off" in caplog.text
