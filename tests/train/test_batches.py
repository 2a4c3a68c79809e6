"""Samples follow from (seed, purpose, step, sample) and from nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loractl.data.examples import Example
from loractl.data.latents import Latents
from loractl.data.views import Variety
from loractl.families.posterior import Posterior
from loractl.train.batches import Batch, Share, Source
from loractl.train.noise import Noising
from tests.datasets.photos import save_photo

CPU = torch.device("cpu")
ALL = Variety(flip=True, random_crop=True, jitter=0.2, holes=True)


def encode(pictures: Tensor) -> Posterior:
    """A stand-in for an autoencoder: the picture itself, with a spread."""
    return Posterior(pictures, torch.full_like(pictures, 0.5))


def make(
    folder: Path, sizes: list[tuple[int, int]], variety: Variety = Variety(), repeats: Sequence[int] | None = None
) -> Source:
    """One picture for each size, captioned by its number; the first has a mask."""
    paths = [save_photo(folder / f"{i}.png", size, seed=i) for i, size in enumerate(sizes)]
    counts = repeats or [1] * len(sizes)
    examples = [
        Example(path, f"{i}, a, b, c", count) for i, (path, count) in enumerate(zip(paths, counts, strict=True))
    ]
    examples[0] = replace(examples[0], mask=examples[0].path)
    return Source("subject", Latents(examples, sizes, encode, CPU, variety), seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make(tmp_path, [(12, 8)] * 3)


def equal(one: Batch, two: Batch) -> bool:
    pairs = [(getattr(one, each.name), getattr(two, each.name)) for each in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def shown(source: Source, steps: range, per_step: int) -> list[int]:
    return [source.view(step, sample, per_step).index for step in steps for sample in range(per_step)]


@pytest.mark.parametrize("kept", [False, True])
def test_two_accumulated_batches_are_one_of_twice_the_size(tmp_path: Path, kept: bool) -> None:
    source = make(tmp_path, [(12, 8), (8, 8), (12, 8), (8, 12), (8, 8)], ALL)
    source = replace(source, noising=Noising(perturbation=0.1, offset=0.1), shuffle_tags=True, caption_dropout=0.3)
    if kept:
        source.prepare(variants=2)
    for step in range(6):
        whole = source.batch(step, range(4), 4)
        assert equal(whole, source.batch(step, range(2), 4) + source.batch(step, range(2, 4), 4))
        assert whole.extra is not None and whole.extra.shape[1] == 1 + whole.latents.shape[1]
        assert whole.mixed is not whole.noise and len(whole) == len(whole.names) == 4


def test_a_step_can_be_made_again_alone(tmp_path: Path) -> None:
    source = make(tmp_path / "one", [(12, 8), (8, 8), (8, 8)], ALL)
    steps = [source.batch(step, range(2), 2) for step in range(5)]
    again = make(tmp_path / "one", [(12, 8), (8, 8), (8, 8)], ALL)
    assert equal(again.batch(4, range(2), 2), steps[4])
    assert not equal(steps[4], steps[3])


def test_a_mask_of_ones_is_added_where_only_the_other_batch_has_one(source: Source) -> None:
    batches = [source.batch(step, range(1), 1) for step in range(9)]
    masked = next(batch for batch in batches if batch.mask is not None)
    plain = next(batch for batch in batches if batch.mask is None)
    both = plain + masked
    assert both.mask is not None and masked.mask is not None
    assert torch.equal(both.mask, torch.cat([torch.ones(1, 1, 8, 12), masked.mask]))
    assert (plain + plain).mask is None


def test_every_picture_is_shown_as_often_as_it_is_repeated(tmp_path: Path) -> None:
    source = make(tmp_path, [(12, 8)] * 3, repeats=[2, 4, 4])
    assert Counter(shown(source, range(5), 4)) == {0: 4, 1: 8, 2: 8}  # two epochs of ten pictures each


@pytest.mark.parametrize("per_step", [1, 2, 3, 5])
def test_all_samples_of_a_step_come_from_one_bucket(tmp_path: Path, per_step: int) -> None:
    sizes = [(8, 8), (12, 8), (8, 8), (8, 12), (12, 8), (8, 8), (8, 8)]
    source = make(tmp_path, sizes)
    steps = -(-4 // per_step) + -(-2 // per_step) + -(-1 // per_step)  # of an epoch
    for step in range(3 * steps):
        assert len({sizes[i] for i in shown(source, range(step, step + 1), per_step)}) == 1
    for epoch in range(3):
        of_epoch = shown(source, range(epoch * steps, (epoch + 1) * steps), per_step)
        if per_step == 1:
            assert sorted(of_epoch) == list(range(7))
        buckets = Counter(sizes[i] for i in of_epoch)
        assert buckets == {(8, 8): -(-4 // per_step) * per_step} | dict(
            zip([(12, 8), (8, 12)], [-(-2 // per_step) * per_step, per_step], strict=True)
        )


def test_within_a_bucket_every_picture_comes_equally_often(tmp_path: Path) -> None:
    source = make(tmp_path, [(8, 8)] * 3 + [(12, 8)] * 2)
    seen = Counter(shown(source, range(3 * 3), 2))  # an epoch has two steps of three pictures and one of two
    assert [seen[i] for i in range(3)] == [4, 4, 4] and [seen[i] for i in (3, 4)] == [3, 3]


def test_epochs_are_shuffled_apart(tmp_path: Path) -> None:
    source = make(tmp_path, [(8, 8)] * 6)
    epochs = [tuple(shown(source, range(epoch * 6, epoch * 6 + 6), 1)) for epoch in range(4)]
    assert len(set(epochs)) == 4


def test_steps_seeds_and_purposes_differ(source: Source) -> None:
    others = [source.batch(1, range(2), 2), replace(source, seed=2).batch(0, range(2), 2)]
    others.append(replace(source, purpose="class").batch(0, range(2), 2))
    first = source.batch(0, range(2), 2)
    assert not any(torch.equal(first.noise, other.noise) or torch.equal(first.times, other.times) for other in others)


def test_samples_of_a_step_have_draws_of_their_own(tmp_path: Path) -> None:
    source = make(tmp_path, [(8, 8)], ALL)  # one picture, so that nothing else differs
    batch = source.batch(0, range(4), 4)
    for tensor in (batch.noise, batch.times, batch.latents - batch.latents.mean(), batch.extra):
        assert tensor is not None and len({tuple(row.flatten().tolist()) for row in tensor}) == 4
    assert len({source.view(0, sample, 4) for sample in range(4)}) == 4


def test_one_option_leaves_the_draws_of_the_others_alone(tmp_path: Path) -> None:
    plain, varied = make(tmp_path, [(8, 8)] * 3), make(tmp_path, [(8, 8)] * 3, ALL)
    varied = replace(varied, caption_dropout=0.5, shuffle_tags=True, mask_floor=0.5)
    one, two = plain.batch(3, range(3), 3), varied.batch(3, range(3), 3)
    assert torch.equal(one.noise, two.noise) and torch.equal(one.times, two.times) and one.names == two.names


def test_flips_captions_and_times_are_drawn_anew(tmp_path: Path) -> None:
    source = replace(make(tmp_path, [(4, 4)] * 2, Variety(flip=True)), caption_dropout=0.3)
    source.prepare()
    batches = [source.batch(step, range(1), 1) for step in range(400)]
    assert 150 < sum(source.view(step, 0, 1).flip for step in range(400)) < 250
    assert 80 < sum(batch.captions == [""] for batch in batches) < 160
    times = torch.cat([batch.times for batch in batches])
    assert times.dtype == torch.float32 and 0 <= times.min() < 0.02 and 0.98 < times.max() < 1


def test_kept_latents_equal_fresh_ones(tmp_path: Path) -> None:
    source = make(tmp_path, [(12, 8)] * 3, Variety(flip=True))
    fresh = source.batch(0, range(4), 4)
    source.prepare()
    assert source.latents.complete
    assert equal(source.batch(0, range(4), 4), fresh)


def test_a_kept_posterior_still_gives_a_new_draw_each_time(tmp_path: Path) -> None:
    source = make(tmp_path, [(40, 40)])
    source.prepare()
    one, two = (source.batch(step, range(1), 1).latents for step in range(2))
    assert (one - two).std().item() == pytest.approx(0.5 * 2**0.5, rel=0.05)


def test_the_mask_has_its_floor(source: Source) -> None:
    step = shown(source, range(3), 1).index(0)
    bare, raised = (replace(source, mask_floor=floor).batch(step, range(1), 1).mask for floor in (0.0, 0.25))
    assert bare is not None and raised is not None
    torch.testing.assert_close(raised, 0.25 + 0.75 * bare)
    assert replace(source, mask_floor=1.0).batch(step, range(1), 1).mask.eq(1).all()  # type: ignore[union-attr]


def test_noise_is_uploaded_once_where_nothing_perturbs_it(source: Source) -> None:
    batch = source.batch(0, range(2), 2)
    assert batch.mixed is batch.noise
    assert batch.captions == [source.latents.examples[i].caption for i in shown(source, range(1), 2)]


@pytest.mark.cuda
@pytest.mark.parametrize("kept", [True, False])
def test_on_a_gpu_the_host_waits_for_nothing(tmp_path: Path, kept: bool) -> None:
    source = make(tmp_path, [(12, 8), (12, 8)], ALL)
    latents = Latents(source.latents.examples, source.latents.frames, encode, torch.device("cuda"), ALL)
    source = replace(source, latents=latents, noising=Noising(perturbation=0.1))
    if kept:
        source.prepare(variants=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = source.batch(0, range(2), 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tensors = [getattr(batch, each.name) for each in fields(Batch)]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)} == {"cuda"}


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_shares_are_equal_and_together_the_step(batch_size: int, grad_accum: int, data: st.DataObject) -> None:
    total = batch_size * grad_accum
    processes = data.draw(st.sampled_from([count for count in range(1, total + 1) if total % count == 0]))
    shares = [Share(batch_size, grad_accum, index, processes) for index in range(processes)]
    batches = [share.samples(part) for share in shares for part in range(share.parts)]
    assert sorted(sample for batch in batches for sample in batch) == list(range(total))
    assert len({len(batch) for batch in batches}) == 1
    assert all(len({sample // batch_size for sample in batch}) == 1 for batch in batches)


def test_a_step_that_can_not_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="4 processes can't share 6 samples evenly"):
        Share(2, 3, 0, 4)
