"""What loading of data has in common, shown on numbers instead of data."""

import pytest

from un.datasets import BatchLoader, ResumableDataModule, derive_seed


class CountingSampler:
    def __init__(self, count):
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count


def make_loader(count=4):
    sampler = CountingSampler(count)
    return BatchLoader(sampler, lambda start: [(sampler.epoch, number) for number in range(start, count)])


class CountingData(ResumableDataModule):
    def make_loader(self, split, training):
        loader = make_loader()
        loader.name = (split, training)
        return loader


def test_seeds_depend_on_every_number_and_their_order():
    seeds = {derive_seed(*numbers) for numbers in [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (2**40, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert derive_seed(3, 4) == derive_seed(3, 4)


def test_epoch_is_asked_for_when_the_first_batch_is():
    loader = make_loader()
    batches = iter(loader)
    loader.sampler.set_epoch(7)
    assert list(batches) == [(7, number) for number in range(4)]


@pytest.mark.parametrize("done", range(5))
def test_another_loader_goes_on_after_the_batches_handed_out(done):
    loader = make_loader()
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    for _ in range(done):
        next(batches)
    state = loader.state_dict()
    resumed = make_loader()
    resumed.load_state_dict(state)
    if done:
        assert resumed.state_dict() == {"epoch": 2, "batch": done, "num_batches": 4}
    resumed.sampler.set_epoch(2)
    assert list(resumed) == [(2, number) for number in range(done, 4)]
    assert list(resumed) == [(2, number) for number in range(4)]  # the state counts once


def test_state_of_another_epoch_is_no_reason_to_skip():
    loader = make_loader()
    loader.load_state_dict({"epoch": 2, "batch": 3, "num_batches": 4})
    loader.sampler.set_epoch(3)
    assert list(loader) == [(3, number) for number in range(4)]


def test_state_of_other_batches_is_refused():
    with pytest.raises(ValueError, match="written with 5 batches per epoch, this run has 4"):
        make_loader().load_state_dict({"epoch": 0, "batch": 1, "num_batches": 5})


def test_data_module_keeps_the_position_of_training_for_the_next_loader():
    data = CountingData()
    assert data.state_dict() == {}
    batches = iter(data.train_dataloader())
    next(batches)
    resumed = CountingData()
    resumed.load_state_dict(data.state_dict())
    assert list(resumed.train_dataloader()) == [(0, 1), (0, 2), (0, 3)]
    assert list(resumed.train_dataloader()) == [(0, number) for number in range(4)]


def test_only_training_shuffles():
    data = CountingData()
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [loader.name for loader in loaders] == [("train", True), ("val", False), ("test", False)]
    assert (data.rank, data.world_size) == (0, 1)
