"""Truncation is the best there is, and every rule of size keeps what it says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loractl.errors import JobError
from loractl.tensors.lowrank import LowRank
from loractl.tensors.truncate import Size, captured, choose_ranks, decompose, decompose_dense, trimmed, truncate
from tests.tensors.updates import SHAPES, adapters, delta, patient, random_update, turned, updates

RANKS = st.integers(1, 8)
SHARES = st.floats(0.05, 1.0)
Modules = dict[str, LowRank]


@patient
@given(updates(), RANKS)
def test_the_error_is_the_tail_of_the_singular_values(low: LowRank, rank: int) -> None:
    """Eckart and Young: nothing of this rank comes nearer."""
    values = torch.linalg.svdvals(delta(low).flatten(1))
    error = (delta(decompose(low).keep(rank)) - delta(low)).norm()
    assert error == pytest.approx(float(values[rank:].norm()), abs=1e-5 * float(values.norm()))


@patient
@given(updates())
def test_full_rank_changes_nothing(low: LowRank) -> None:
    kept = decompose(low).keep(low.rank)
    assert kept.shape == low.shape and kept.up.ndim == low.up.ndim
    assert (delta(kept) - delta(low)).norm() <= 1e-5 * delta(low).norm()


@patient
@given(updates(), RANKS, st.integers(0, 9))
def test_other_factors_of_one_update_make_no_difference(low: LowRank, rank: int, seed: int) -> None:
    decomposed, other = decompose(low), decompose(turned(low, seed))
    torch.testing.assert_close(decomposed.values, other.values, atol=1e-5 * float(decomposed.values[0]), rtol=1e-4)
    assert captured({"x": decomposed}, {"x": rank}) == pytest.approx(captured({"x": other}, {"x": rank}), abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_dense_matrix_is_decomposed_as_torch_does_it(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = decompose_dense(matrix), torch.linalg.svdvals(matrix.flatten(1))
    torch.testing.assert_close(ours.values, theirs)
    torch.testing.assert_close(ours.keep(99).delta(), matrix)
    error = (delta(ours.keep(2)) - matrix).norm()
    assert float(error) == pytest.approx(float(theirs[2:].norm()), rel=1e-5)


def test_a_dense_matrix_of_low_rank_and_one_of_zeros() -> None:
    low = random_update((9, 20), 3, 3.0, 0)
    decomposed = {"low": decompose_dense(low.delta()), "zero": decompose_dense(torch.zeros(4, 6))}
    ranks = choose_ranks(decomposed, Size(energy=1.0))
    assert ranks == {"low": 3, "zero": 0}
    torch.testing.assert_close(truncate(decomposed, ranks)["low"].delta(), low.delta(), atol=1e-5, rtol=1e-5)


@patient
@given(adapters(), SHARES)
def test_energy_takes_the_least_rank_that_has_it(adapter: Modules, energy: float) -> None:
    decomposed = {path: decompose(low) for path, low in adapter.items()}
    for path, rank in choose_ranks(decomposed, Size(energy=energy)).items():
        one = {path: decomposed[path]}
        assert captured(one, {path: rank}) >= energy - 1e-9
        assert captured(one, {path: rank - 1}) < energy


@patient
@given(adapters(), SHARES, RANKS)
def test_ratio_and_rank_hold_at_once(adapter: Modules, ratio: float, rank: int) -> None:
    decomposed = {path: decompose(low) for path, low in adapter.items()}
    for path, chosen in choose_ranks(decomposed, Size(rank=rank, ratio=ratio)).items():
        values = decomposed[path].values
        assert chosen == min(rank, sum(value >= ratio * values[0] for value in values))


@patient
@given(adapters(), st.floats(0.2, 1.5))
def test_a_budget_is_kept_and_spent_where_it_buys_most(adapter: Modules, share: float) -> None:
    decomposed = {path: decompose(low) for path, low in adapter.items()}
    cheapest = max(each.cost for each in decomposed.values())
    budget = max(cheapest, int(share * sum(each.cost * len(each.values) for each in decomposed.values())))
    ranks = choose_ranks(decomposed, Size(parameters=budget))
    spent = sum(low.down.numel() + low.up.numel() for low in truncate(decomposed, ranks).values())
    assert spent <= budget
    worth = {path: each.values.double().square() / each.cost for path, each in decomposed.items()}
    bought = [float(w) for path, rank in ranks.items() for w in worth[path][:rank]]
    left = [(float(w), decomposed[path].cost) for path, rank in ranks.items() for w in worth[path][rank : rank + 1]]
    best, price = max(left, default=(0.0, 0))
    assert min(bought) >= best
    assert best < 1e-9 * max(bought) or spent + price > budget


def test_a_budget_is_not_spent_on_what_a_cap_forbids() -> None:
    strong = decompose(random_update((9, 9), 8, 800.0, 0))
    modules = {"strong": strong, "weak": decompose(random_update((9, 9), 8, 1.0, 1))}
    assert choose_ranks(modules, Size(rank=2, parameters=8 * strong.cost)) == {"strong": 2, "weak": 2}
    assert choose_ranks(modules, Size(rank=2, parameters=3 * strong.cost)) == {"strong": 2, "weak": 1}
    assert choose_ranks(modules, Size(rank=6, parameters=8 * strong.cost)) == {"strong": 6, "weak": 2}


@patient
@given(adapters(), st.sampled_from([Size(rank=2), Size(energy=0.7), Size(rank=3, parameters=90), Size(parameters=90)]))
def test_what_no_choice_can_keep_need_not_be_held(adapter: Modules, size: Size) -> None:
    whole = {path: decompose_dense(low.delta()) for path, low in adapter.items()}
    small = {path: trimmed(each, size) for path, each in whole.items()}
    ranks = choose_ranks(whole, size)
    assert choose_ranks(small, size) == ranks
    assert captured(small, ranks) == captured(whole, ranks)
    for path, low in truncate(small, ranks).items():
        assert torch.equal(low.delta(), whole[path].keep(ranks[path]).delta())
    for each in small.values():
        rank = len(each.right)
        assert rank <= (size.rank or rank) and rank * each.cost <= (size.parameters or rank * each.cost)
        assert sum(factor.untyped_storage().nbytes() for factor in (each.left, each.right)) == 4 * rank * each.cost


def test_a_size_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(JobError, match="allow a larger one"):
        choose_ranks({"x": decompose(random_update((5, 9), 2, 1.0, 0))}, Size(parameters=13))
