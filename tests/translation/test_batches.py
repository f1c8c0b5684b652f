import itertools

import numpy as np
import pytest

from un.translation.batches import TokenSampler, cut
from un.translation.fairseq_library import data_utils

SIZES = np.random.default_rng(0).integers(2, 40, (203, 2))
NUMBERS = np.arange(len(SIZES))


def make_sampler(training=True, sizes=SIZES, max_tokens=200, indices=None, **options):
    indices = np.arange(len(sizes)) if indices is None else indices
    return TokenSampler(sizes, indices, max_tokens, training=training, **options)


def list_indices(sampler, epoch=0):
    sampler.set_epoch(epoch)
    batches = [batch.tolist() for batch in sampler.list_batches()]
    assert len(batches) == len(sampler)
    return batches


def measure(batch):
    return len(batch) * SIZES[batch].max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_every_pair_comes_once_and_no_batch_is_too_large(training, multiple):
    batches = list_indices(make_sampler(training, multiple=multiple), 3)
    assert sorted(itertools.chain(*batches)) == NUMBERS.tolist()
    assert all(measure(batch) <= 200 for batch in batches)
    assert max(map(len, list_indices(make_sampler(training, batch_size=3)))) == 3
    if multiple > 1:
        assert sum(len(batch) > 8 and len(batch) % 8 > 0 for batch in batches) <= 1


def test_batches_are_those_of_fairseq():
    order = np.lexsort((SIZES[:, 1], SIZES[:, 0]))
    expected = data_utils.batch_by_size(order, None, SIZES.max(axis=1)[order], max_tokens=200)
    assert list_indices(make_sampler(training=False)) == [batch.tolist() for batch in expected]


def test_the_last_batch_is_not_forgotten():
    lengths = np.full(19, 10)
    fairseqs = data_utils.batch_by_size(np.arange(19), None, lengths, max_tokens=85, required_batch_size_multiple=8)
    assert sum(map(len, fairseqs)) == 16  # what cut() is for
    assert cut(lengths, 85, None, 8) == [8, 8, 3]
    assert cut(np.full(3, 10), 85, None, 8) == [3]


def test_order_depends_on_seed_and_epoch():
    sampler = make_sampler(seed=3)
    first = list_indices(sampler)
    assert first == list_indices(make_sampler(seed=3))
    assert first != list_indices(sampler, 1)
    assert first != list_indices(make_sampler(seed=4))


def test_pairs_of_equal_lengths_change_places():
    sampler = make_sampler(sizes=np.full((40, 2), 10), max_tokens=100)
    groups = {frozenset(frozenset(batch) for batch in list_indices(sampler, epoch)) for epoch in range(5)}
    assert len(groups) == 5


def test_only_the_given_pairs_are_taken():
    chosen = NUMBERS[50:90]
    for training in (True, False):
        batches = list_indices(make_sampler(training, indices=chosen))
        assert sorted(itertools.chain(*batches)) == chosen.tolist()


def test_processes_share_the_training_batches_of_one():
    world_size, whole = 3, list_indices(make_sampler(), 5)
    shards = [list_indices(make_sampler(rank=rank, world_size=world_size), 5) for rank in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1
    together = [batch for step in zip(*shards, strict=True) for batch in step]
    assert together == whole[: len(together)]
    assert len(whole) - len(together) < world_size


@pytest.mark.parametrize(("count", "world_size"), [(203, 7), (4, 4)])
def test_evaluation_sees_every_pair_once_in_equally_many_batches(count, world_size):
    options = {"sizes": SIZES[:count], "world_size": world_size}
    shards = [list_indices(make_sampler(False, rank=rank, **options)) for rank in range(world_size)]
    assert sorted(itertools.chain(*itertools.chain(*shards))) == list(range(count))
    assert len({len(shard) for shard in shards}) == 1
    assert all(batch for shard in shards for batch in shard)


def test_too_few_pairs():
    with pytest.raises(ValueError, match=r"5 sentence pairs in 1 batches are too few for 2 processes; lower data.max"):
        make_sampler(True, sizes=SIZES[:5], world_size=2)
    with pytest.raises(ValueError, match="3 sentence pairs cannot be shared evenly by 2 processes"):
        make_sampler(False, sizes=SIZES[:3], batch_size=1, world_size=2)


def measure_padding(batches, sizes):
    """Shares of padding in source and target."""
    whole = sum(len(batch) * sizes[batch].max(axis=0) for batch in batches)
    return 1 - sizes.sum(axis=0) / whole


def test_groupings_differ_in_padding_only():
    """The order of `source_length` leaves the target ragged, that of `nothing` both sides; every pair comes once."""
    sizes = np.random.default_rng(1).integers(2, 12, (400, 2))
    found = []
    for group_by in ("lengths", "source_length", "nothing"):
        sampler = make_sampler(sizes=sizes, max_tokens=10_000, batch_size=8, group_by=group_by)
        batches = list_indices(sampler)
        assert sorted(itertools.chain(*batches)) == list(range(400))
        assert len(sampler) == 50
        found.append(measure_padding(batches, sizes))
    grouped, ragged, shuffled = found
    assert ragged[0] == grouped[0]
    assert ragged[1] > grouped[1] + 0.1
    assert shuffled[0] > grouped[0] + 0.1


@pytest.mark.parametrize("group_by", ["source_length", "nothing"])
def test_batches_with_more_padding_keep_within_the_limit_and_their_number(group_by):
    sampler = make_sampler(group_by=group_by, seed=3)
    first, second = list_indices(sampler), list_indices(sampler, 1)
    assert all(measure(batch) <= 200 for batch in first)
    assert first != second
    assert sorted(first) == sorted(second)  # otherwise epochs would differ in length
    assert first == list_indices(make_sampler(group_by=group_by, seed=3))
    assert sorted(first) != sorted(list_indices(make_sampler(group_by=group_by, seed=4)))
    assert list_indices(make_sampler(False, group_by=group_by)) == list_indices(make_sampler(False))
