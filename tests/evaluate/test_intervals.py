"""Intervals are as wide as theory says, count prompts and not pictures, and tell change from chance."""

import random

import pytest
import torch

from loractl.evaluate.intervals import by_chance, once, percentiles, reflected, resampled
from loractl.evaluate.measures import mean, total_variation
from loractl.evaluate.scores import drift


def test_counts_are_those_of_pictures_drawn_in_two_stages() -> None:
    prompts = ["a", "b", "a", "b", "a", "b"]
    counts = resampled(prompts)
    assert torch.equal(counts, resampled(prompts))
    assert set(counts.sum(1).tolist()) == {6.0}
    only_b = (counts[:, [0, 2, 4]] == 0).all(1).double().mean()
    assert only_b == pytest.approx(1 / 4, abs=0.05), "both draws of a prompt fall on b in a quarter of cases"


def test_prompts_of_unequal_size_keep_their_pictures() -> None:
    counts = resampled(["a", "b", "b", "b"])
    sizes = counts[:, 0] + counts[:, 1:].sum(1)
    assert set(sizes.tolist()) <= {2.0, 4.0, 6.0}
    assert counts[:, 0].max() == 2


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = percentiles(mean(values)(resampled(["one"] * 400)))
    right = 2 * 1.96 * float(values.std()) / 400**0.5
    assert low < float(values.mean()) < high
    assert high - low == pytest.approx(right, rel=0.1)


def test_pictures_that_only_repeat_their_prompt_bear_no_further_witness() -> None:
    level = torch.randn(10, generator=torch.Generator().manual_seed(0))
    few = percentiles(mean(level)(resampled([str(i) for i in range(10)])))
    many = percentiles(mean(level.repeat(20))(resampled([str(i) for i in range(10)] * 20)))
    assert many[1] - many[0] == pytest.approx(few[1] - few[0], rel=0.1)


def test_draws_without_a_value_are_left_out() -> None:
    assert percentiles(torch.tensor([float("nan"), 0.5, 0.5, float("nan")], dtype=torch.float64)) == (0.5, 0.5)


def test_a_mirrored_interval_stays_within_the_scale() -> None:
    assert reflected(0.1, torch.linspace(0.1, 0.5, 101, dtype=torch.float64)) == (0.0, pytest.approx(0.09))


def sample(rng: random.Random, count: int, red: float) -> list[list[str]]:
    """Three attributes of `count` pictures; the share `red` of each says red, the rest one of five colors."""
    return [["red" if rng.random() < red else rng.choice("abcde") for _ in range(count)] for _ in range(3)]


def compared(before: list[list[str]], after: list[list[str]]) -> list[list[str]]:
    return [[*one, *two] for one, two in zip(before, after, strict=True)]


def test_the_same_pictures_have_no_drift_and_no_chance_of_it() -> None:
    same = sample(random.Random(0), 40, 0.2)
    score = drift(total_variation(compared(same, same)), ["p"] * 40)
    assert (score.value, score.low, score.high, score.floor) == (0, 0, 0, 0)


def test_new_pictures_of_the_same_kind_drift_as_chance_has_it() -> None:
    rng, floors = random.Random(0), []
    for _ in range(10):
        score = drift(total_variation(compared(sample(rng, 40, 0.2), sample(rng, 40, 0.2))), ["p"] * 40)
        assert score.floor is not None
        floors.append((score.value, score.floor, score.low))
    values, expected, lows = (torch.tensor(column) for column in zip(*floors, strict=True))
    assert values.mean() == pytest.approx(float(expected.mean()), rel=0.2)
    assert (lows == 0).sum() >= 8


def test_drift_is_within_its_interval_and_above_chance() -> None:
    rng = random.Random(1)
    score = drift(
        total_variation(compared(sample(rng, 64, 0.0), sample(rng, 64, 0.6))), [str(i % 8) for i in range(64)]
    )
    assert score.floor is not None
    assert score.low < 0.6 < score.high, "of the pictures, 0.6 became red"
    assert score.low > score.floor


def test_chance_does_not_see_which_came_first() -> None:
    rng = random.Random(2)
    before, after = sample(rng, 30, 0.0), sample(rng, 30, 0.9)
    chances = [by_chance(total_variation(compared(*pair)), 30).mean() for pair in ((before, after), (after, before))]
    assert chances[0] == pytest.approx(float(chances[1]), abs=0.01)
    assert chances[0] < 0.5 * float(total_variation(compared(before, after))(*sides(30)))


def sides(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    none = torch.zeros(1, count, dtype=torch.float64)
    return torch.cat([once(count), none], 1), torch.cat([none, once(count)], 1)
