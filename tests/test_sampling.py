import numpy as np
import pytest

from qamdt.training.sampling import EpochSampler


def take(sampler, num_batches):
    batches = iter(sampler)
    return [draw for _ in range(num_batches) for draw in next(batches)]


def one_bucket(num_clips):
    return [np.arange(num_clips)]


def test_no_clip_is_lost_or_doubled_over_ranks_and_epochs():
    draws = []
    for rank in range(2):
        draws += take(EpochSampler(one_bucket(30), batch_size=5, seed=1, rank=rank, num_ranks=2), 6)
    assert sorted(draws) == [(epoch, number, 0) for epoch in range(2) for number in range(30)]


def test_epochs_differ_in_order_and_resuming_takes_up_the_row():
    row = take(EpochSampler(one_bucket(7), batch_size=3, seed=1), 14)
    assert row[:7] != [(0, number, 0) for _, number, _ in row[7:14]]
    assert take(EpochSampler(one_bucket(7), batch_size=3, seed=1, taken=[15]), 9) == row[15:42]


def test_every_bucket_gives_batches_of_its_own_and_its_share_of_them():
    buckets = [np.arange(10), np.arange(10, 40)]
    sampler = EpochSampler(buckets, batch_size=2, seed=0)
    batches = iter(sampler)
    taken, chosen = sampler.taken, []
    for _ in range(20):
        batch = [number for _, number, _ in next(batches)]
        chosen.append(int(batch[0] >= 10))
        assert all(number in buckets[chosen[-1]] for number in batch)
        taken = sampler.advance(taken)
    assert taken == [10, 30]
    assert chosen.count(0) == 5
    resumed = iter(EpochSampler(buckets, batch_size=2, seed=0, taken=taken))
    assert next(resumed) == next(batches)


def test_one_epoch_of_each_bucket_has_every_clip_once():
    draws = take(EpochSampler([np.arange(10), np.arange(10, 40)], batch_size=2, seed=0), 20)
    assert sorted(number for _, number, _ in draws) == list(range(40))


def test_clips_are_drawn_as_often_as_their_weights_say():
    weights = np.array([0.0, 1.0, 1.0, 2.0])
    draws = take(EpochSampler(one_bucket(4), batch_size=4, seed=0, weights=weights), 100)
    counts = np.bincount([number for _, number, _ in draws], minlength=4)
    np.testing.assert_array_equal(counts, [0, 100, 100, 200])
    assert len(set(draws)) == len(draws)  # a clip that comes twice in an epoch is another draw
    fractions = np.array([0.5, 1.5, 1.0, 1.0])
    draws = take(EpochSampler(one_bucket(4), batch_size=4, seed=0, weights=fractions), 1000)
    counts = np.bincount([number for _, number, _ in draws])
    np.testing.assert_allclose(counts / 1000, fractions, atol=0.05)


def test_a_window_mixes_so_many_shards_at_a_time():
    shards = np.repeat(np.arange(6), 5)
    sampler = EpochSampler(one_bucket(30), batch_size=10, seed=0, shards=shards, window_in_shards=2)
    row = take(sampler, 6)
    for epoch in range(2):
        numbers = [number for e, number, _ in row if e == epoch]
        assert sorted(numbers) == list(range(30))
        windows = [set(shards[numbers[start : start + 10]]) for start in (0, 10, 20)]
        assert [len(window) for window in windows] == [2, 2, 2]
        assert set.union(*windows) == set(range(6))


def test_settings_that_cannot_be_followed_are_refused():
    with pytest.raises(ValueError, match="every clip has weight 0"):
        EpochSampler(one_bucket(3), batch_size=1, seed=0, weights=np.zeros(3))
    with pytest.raises(ValueError, match="started with 2 lengths of crops, now there are 1"):
        EpochSampler(one_bucket(3), batch_size=1, seed=0, taken=[2, 4])
