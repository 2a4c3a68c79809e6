"""A batch of many subjects is the batches of each alone: outputs, gradients, and nothing of one in another."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loractl.inject.dropout import Dropout, set_dropout
from loractl.inject.fleet import Fleet, RoutedConv2d, seats, take_off
from loractl.inject.inject import adapter, collect, hash_of, inject
from loractl.inject.layers import LoraFactors
from loractl.inject.targets import Target

CPU = torch.device("cpu")
LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(6, 5),
    "conv": nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "reflected": nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"),
    "grouped": nn.Conv2d(6, 4, 3, padding="same", groups=2),
}


def network(kind: str) -> nn.Sequential:
    return nn.Sequential(copy.deepcopy(LAYERS[kind]).double())


def recruit(model: nn.Module, count: int, rank: int = 3) -> list[dict[str, LoraFactors]]:
    """Adapters of random factors in fp64, taken off again."""
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        inject(model, {"0": Target(rank, 2.0)}, generator=generator)
        factors = take_off(model)
        for each in factors.values():
            each.double()
            each.up.data = torch.randn(each.up.shape, generator=generator, dtype=torch.float64)
        found.append(factors)
    return found


def inputs(kind: str, count: int, seed: int = 0) -> Tensor:
    shape = (count, 4, 6) if kind == "linear" else (count, 6, 5, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fleet_of(model: nn.Module, crews: Sequence[dict[str, LoraFactors]]) -> Fleet:
    return Fleet({"unet": model}, [{"unet": crew} for crew in crews])


def alone(fleet: Fleet, model: nn.Module, x: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Each subject's samples through the model that wears its adapter."""
    found = []
    for subject, part in enumerate(x.split(list(counts))):
        fleet.wear(subject)
        found.append(model(part))
    return found


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(LAYERS)), st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
def test_every_sample_goes_through_its_own_subjects_adapter(kind: str, counts: list[int]) -> None:
    model = network(kind)
    fleet = fleet_of(model, recruit(model, len(counts)))
    x = inputs(kind, sum(counts))
    expected = torch.cat([out for out in alone(fleet, model, x, counts) if len(out)])
    with fleet.seated(counts):
        together = model(x)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_subject_gets_exactly_its_own_gradient(kind: str) -> None:
    counts, model, single = (2, 0, 4), network(kind), network(kind)
    single.load_state_dict(model.state_dict())
    crews = recruit(model, 3)
    x = inputs(kind, sum(counts))
    fleet = fleet_of(model, crews)
    with fleet.seated(counts):
        parts = model(x).split(counts)
    torch.stack([part.square().sum() for part in parts]).sum().backward()
    for part, own, crew in zip(x.split(counts), recruit(single, 3), crews, strict=True):
        other = fleet_of(single, [own])
        single(part).square().sum().backward()
        for name, parameter in own["0"].named_parameters():
            torch.testing.assert_close(crew["0"].get_parameter(name).grad, parameter.grad, rtol=0, atol=1e-10)
        single.set_submodule("0", other.layers[0].unwrap())
    rested: Any = crews[1]["0"].up.grad
    assert not rested.any()
    fleet.forget_gradients()
    assert all(not parameter.grad.any() for crew in crews for parameter in crew["0"].parameters())


def test_the_optimizer_of_one_subject_moves_its_rows_alone() -> None:
    model = network("linear")
    crews = recruit(model, 2)
    fleet = fleet_of(model, crews)
    before = copy.deepcopy([collect_of(fleet, model, subject) for subject in (0, 1)])
    with fleet.seated([1, 1]):
        model(inputs("linear", 2)).sum().backward()
    torch.optim.SGD(crews[1]["0"].parameters(), lr=0.1).step()
    assert torch.equal(collect_of(fleet, model, 0), before[0])
    assert not torch.equal(collect_of(fleet, model, 1), before[1])


def collect_of(fleet: Fleet, model: nn.Module, subject: int) -> Tensor:
    fleet.wear(subject)
    return collect(model)["0"].up


def test_the_base_is_left_as_it_was() -> None:
    model = network("conv")
    before, names = hash_of(model), [name for name, _ in model.named_parameters()]
    crews = recruit(model, 2)
    assert [name for name, _ in model.named_parameters()] == names
    fleet = fleet_of(model, crews)
    with fleet.seated([1, 1]):
        model(inputs("conv", 2)).sum().backward()
    assert hash_of(model) == before


def test_dropout_of_one_subject_is_not_anothers() -> None:
    model = network("linear")
    fleet = fleet_of(model, recruit(model, 2))
    fleet.wear(1)
    set_dropout(adapter(model).values(), Dropout(rank=0.5), torch.Generator().manual_seed(1))
    x = inputs("linear", 2)
    expected = torch.cat(alone(fleet, model, x, [1, 1]))
    with fleet.seated([1, 1]):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    fleet.layers[0].crew[1].keep = None
    whole = torch.cat(alone(fleet, model, x, [1, 1]))
    assert torch.equal(whole[0], expected[0]) and not torch.equal(whole[1], expected[1])


def test_grouped_convolutions_are_the_groups_one_by_one() -> None:
    """What a GPU computes, on the CPU."""
    model = network("conv")
    layer = fleet_of(model, recruit(model, 3)).layers[0]
    assert isinstance(layer, RoutedConv2d)
    x, (down, up) = inputs("conv", 6), layer.stacks
    torch.testing.assert_close(
        layer.base(x) + layer._grouped(x, down, up), layer.through(x, down, up), rtol=0, atol=1e-12
    )


def test_who_sits_where() -> None:
    assert seats([4, 4], CPU).rows is None and seats([4, 4], CPU).per == 4
    uneven = seats([4, 0, 6], CPU)
    assert uneven.rows is not None and (uneven.rows.tolist(), uneven.per) == ([0, 0, 2, 2, 2], 2)
