"""Sums are exact, for all ranks, alphas, signs and targets, and depend on ΔW alone."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loractl.errors import MismatchError
from loractl.tensors.adapter import is_finite
from loractl.tensors.algebra import add_vectors, align, combine, gram, inner, norm, stack
from loractl.tensors.lowrank import LowRank
from loractl.tensors.threads import one_thread
from tests.tensors.updates import SHAPES, adapters, delta, patient, random_update, turned, updates

WEIGHTS = st.integers(-2000, 2000).map(lambda thousandths: thousandths / 1000)  # fp32 has no room for 1e-145
Modules = dict[str, LowRank]


@patient
@given(st.lists(st.tuples(adapters(), WEIGHTS), min_size=1, max_size=4))
def test_a_sum_is_the_sum_of_the_updates(terms: list[tuple[Modules, float]]) -> None:
    result = combine([adapter for adapter, _ in terms], [weight for _, weight in terms])
    for path, shape in SHAPES.items():
        parts = [weight * delta(adapter.get(path), shape) for adapter, weight in terms]
        allowed = 1e-5 * sum(float(part.norm()) for part in parts)
        assert (delta(result.get(path), shape) - sum(parts)).norm() <= allowed


@patient
@given(adapters(), adapters(), WEIGHTS, WEIGHTS)
def test_a_blend_is_linear_in_its_weights(a: Modules, b: Modules, s: float, t: float) -> None:
    whole = combine([a, b], [s + t, s - t])
    halves = combine([combine([a, b], [s, s]), combine([a, b], [t, -t])], [1, 1])
    for path, shape in SHAPES.items():
        size = sum(float(delta(each.get(path), shape).norm()) for each in (a, b)) * (abs(s) + abs(t))
        assert (delta(whole.get(path), shape) - delta(halves.get(path), shape)).norm() <= 1e-5 * size


@patient
@given(adapters(), adapters())
def test_all_of_one_and_nothing_of_the_other_is_the_one(a: Modules, b: Modules) -> None:
    result = combine([a, b], [1, 0])
    assert result.keys() == a.keys()
    for path, low in result.items():
        assert torch.equal(low.down, a[path].down) and torch.equal(low.up, a[path].up)
        assert low.alpha == a[path].alpha


@patient
@given(updates(SHAPES["unet.conv"]), updates(SHAPES["unet.conv"]))
def test_a_stack_has_all_ranks_and_no_scale(a: LowRank, b: LowRank) -> None:
    both = stack([a.to(torch.float16), b.to(torch.float16)])
    assert both.rank == a.rank + b.rank == both.alpha
    assert both.down.dtype == both.up.dtype == torch.float32
    assert both.up.shape[1:] == (both.rank, 1, 1)


@patient
@given(updates(SHAPES["unet.wide"]), updates(SHAPES["unet.wide"]))
def test_inner_products_are_those_of_the_matrices(a: LowRank, b: LowRank) -> None:
    size = float(delta(a).norm() * delta(b).norm())
    assert inner(a, b) == pytest.approx(float((delta(a) * delta(b)).sum()), abs=1e-12 * size)
    assert norm(a) == pytest.approx(float(delta(a).norm()), rel=1e-12)
    assert gram([a, b])[1, 0].item() == inner(b, a)


@patient
@given(updates(), st.integers(0, 9))
def test_other_factors_of_one_update_make_no_difference(low: LowRank, seed: int) -> None:
    other = turned(low, seed)
    assert (delta(stack([low, low])) - delta(stack([other, low]))).norm() <= 1e-5 * norm(low)
    assert inner(low, other) == pytest.approx(norm(low) ** 2, rel=1e-5)


@patient
@given(updates(SHAPES["unet.wide"]), st.integers(0, 5), st.integers(0, 5))
def test_some_rows_of_an_update_and_its_transpose_are_those_of_the_matrix(low: LowRank, begin: int, end: int) -> None:
    torch.testing.assert_close(delta(low.rows(begin, end)), delta(low)[begin:end])
    torch.testing.assert_close(delta(low.transposed()), delta(low).T)


VECTORS = st.dictionaries(st.sampled_from(["a.bias", "b.bias", "c.weight"]), st.lists(WEIGHTS, min_size=3, max_size=3))


@patient
@given(st.lists(st.tuples(VECTORS, WEIGHTS), min_size=1, max_size=4))
def test_vectors_are_added_with_their_weights(terms: list[tuple[dict[str, list[float]], float]]) -> None:
    adapters = [{path: torch.tensor(values, dtype=torch.float64) for path, values in each.items()} for each, _ in terms]
    result = add_vectors(adapters, [weight for _, weight in terms])
    assert result.keys() == {path for each, weight in terms for path in each if weight}
    for path, vector in result.items():
        for index, value in enumerate(vector.tolist()):
            wanted = sum(weight * each[path][index] for each, weight in terms if path in each)
            assert value == pytest.approx(wanted, abs=1e-12)


def test_all_of_one_vector_is_the_vector() -> None:
    vector = torch.rand(7)
    assert torch.equal(add_vectors([{"a": vector}, {"a": torch.rand(7)}], [1, 0])["a"], vector)
    with pytest.raises(MismatchError, match="a has 7 numbers in one adapter and 6 in another"):
        add_vectors([{"a": vector}, {"a": torch.rand(6)}], [1, 0])


def test_shapes_that_differ_are_refused_by_name() -> None:
    a, b = random_update((5, 9), 2, 1.0, 0), random_update((5, 8), 2, 1.0, 0)
    with pytest.raises(MismatchError, match=r"unet\.x is \(5, 9\) in one adapter and \(5, 8\) in another"):
        align([{"unet.x": a}, {}, {"unet.x": b}])


def test_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with pytest.raises(ValueError, match="stop"), one_thread():
        raise ValueError("stop")
    assert asked == [1, 7]


def test_peft_finds_the_same_updates_and_the_same_sum() -> None:
    peft: Any = pytest.importorskip("peft")
    own = {"one": random_update((5, 9), 2, 3.0, 1), "two": random_update((5, 9), 4, 1.0, 2)}
    configs = {
        name: peft.LoraConfig(r=low.rank, lora_alpha=low.alpha, target_modules=["0"]) for name, low in own.items()
    }
    model = peft.get_peft_model(nn.Sequential(nn.Linear(9, 5)), configs["one"], "one")
    model.add_adapter("two", configs["two"])
    layer = model.base_model.model[0]
    for name, low in own.items():
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = low.down, low.up
        torch.testing.assert_close(layer.get_delta_weight(name), low.delta())
    model.add_weighted_adapter(["one", "two"], [0.7, 0.3], "sum", combination_type="cat")
    ours = combine([{"0": own["one"]}, {"0": own["two"]}], [0.7, 0.3])["0"]
    torch.testing.assert_close(layer.get_delta_weight("sum"), ours.delta())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_enough(dtype: torch.dtype) -> None:
    largest = torch.full((2, 3), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest) and is_finite(-largest) and is_finite(torch.empty(0, dtype=dtype))
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in ((0, 0), (1, 2)):
            spoilt = largest.clone()
            spoilt[place] = value
            assert not is_finite(spoilt)
