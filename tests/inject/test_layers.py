"""The law of the wrapper layers: output = op(x, W + Σ weightᵢ·ΔWᵢ), for every kind of layer and in both forms."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loractl.inject.layers import WEIGHT_SPACE_LIMIT, Form, Layer, LoraFactors, LoraInjected, wrap
from loractl.tensors.lowrank import LowRank

FORMS = st.sampled_from(["weight", "branch"])
SIZES = st.integers(1, 7)
RANKS = st.integers(1, 4)
WEIGHTS = st.lists(st.floats(-2, 2), min_size=1, max_size=3)
CPU = torch.device("cpu")


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    groups = draw(st.integers(1, 3))
    stride = draw(st.integers(1, 2))
    paddings: list[Any] = [0, 1, 2, (0, 1), "valid", *(["same"] if stride == 1 else [])]
    return nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel_size=draw(st.sampled_from([1, 2, 3, (1, 3), (3, 2)])),
        stride=stride,
        padding=draw(st.sampled_from(paddings)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


def random_update(weight: Tensor, rank: int) -> LowRank:
    out, *inner = weight.shape
    return LowRank(torch.randn(rank, *inner), torch.randn(out, rank, *(1 for _ in inner[1:])) / rank, alpha=0.5)


def wrapped(base: Layer, form: Form, updates: list[LowRank], weights: list[float]) -> LoraInjected:
    layer = wrap(base, form)
    for i, (low, weight) in enumerate(zip(updates, weights, strict=True)):
        factors = LoraFactors(low, CPU)
        factors.weight.fill_(weight)
        layer.adapters[str(i)] = factors
    return layer


def summed(base: nn.Linear | nn.Conv2d, updates: list[LowRank], weights: list[float]) -> nn.Module:
    """A plain layer with the weight W + Σ weight·ΔW, worked out in fp64."""
    layer = copy.deepcopy(base).double()
    for low, weight in zip(updates, weights, strict=True):
        layer.weight.data += weight * low.to(torch.float64).delta()
    return layer


def assert_law(base: nn.Linear | nn.Conv2d, x: Tensor, form: Form, rank: int, weights: list[float]) -> None:
    updates = [random_update(base.weight, rank) for _ in weights]
    expected = summed(base, updates, weights)(x.double())
    actual = wrapped(base, form, updates, weights)(x)
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * largest)


@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, st.sampled_from([(5,), (2, 5), (2, 3, 5)]), st.booleans(), FORMS, RANKS, WEIGHTS)
def test_linear(
    inner: int, out: int, batch: tuple[int, ...], bias: bool, form: Form, rank: int, weights: list[float]
) -> None:
    assert_law(nn.Linear(inner, out, bias), torch.randn(*batch, inner), form, rank, weights)


@settings(deadline=None, max_examples=150)
@given(convolutions(), FORMS, RANKS, WEIGHTS)
def test_convolution(base: nn.Conv2d, form: Form, rank: int, weights: list[float]) -> None:
    assert_law(base, torch.randn(2, base.in_channels, 9, 8), form, rank, weights)


@settings(deadline=None, max_examples=50)
@given(convolutions(), FORMS)
def test_no_update_no_change(base: nn.Conv2d, form: Form) -> None:
    x = torch.randn(2, base.in_channels, 9, 8)
    expected = base(x)
    low = random_update(base.weight, 2)
    at_start = LowRank(low.down, torch.zeros_like(low.up), low.alpha)
    assert torch.equal(wrapped(base, form, [at_start, low], [1.0, 0.0])(x), expected)


@pytest.mark.parametrize("form", ["weight", "branch"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2**-9), (torch.bfloat16, 2**-6)])
@pytest.mark.parametrize("base", [nn.Linear(32, 24), nn.Conv2d(8, 8, 3, padding=1)], ids=["linear", "conv"])
def test_half_precision_base(base: Any, dtype: torch.dtype, tolerance: float, form: Form) -> None:
    """The factors stay in fp32, the output has the base's dtype, and the law holds to a few of its roundings."""
    torch.manual_seed(0)
    base = copy.deepcopy(base).to(dtype)
    x = torch.randn(2, 32) if isinstance(base, nn.Linear) else torch.randn(2, 8, 6, 6)
    updates = [random_update(base.weight, 4)]
    expected = summed(base, updates, [1.0])(x.to(dtype).double())
    layer = wrapped(base, form, updates, [1.0])
    actual = layer(x.to(dtype))
    assert actual.dtype == dtype
    assert {p.dtype for p in layer.adapters.parameters()} == {torch.float32}
    assert (actual.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("form", ["weight", "branch"])
def test_autocast(form: Form) -> None:
    """Under autocast the output is bf16 as the base's is, but ΔW is still fp32 to the bit."""
    torch.manual_seed(0)
    base = nn.Linear(32, 24)
    updates = [random_update(base.weight, 4)]
    x = torch.randn(2, 32)
    expected = summed(base, updates, [1.0])(x.double())
    layer = wrapped(base, form, updates, [1.0])
    exact = layer.delta()
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x)
        assert torch.equal(layer.delta(), exact)
    assert actual.dtype == torch.bfloat16
    assert (actual.double() - expected).norm() <= 2**-6 * expected.norm()


@pytest.mark.parametrize("form", ["weight", "branch"])
@pytest.mark.parametrize("base", [nn.Linear(5, 7), nn.Conv2d(5, 7, 3)], ids=["linear", "conv"])
def test_forms_have_the_gradients_of_the_law(base: Any, form: Form) -> None:
    torch.manual_seed(0)
    low = random_update(base.weight, 2)
    x = torch.randn(4, 5) if isinstance(base, nn.Linear) else torch.randn(4, 5, 6, 6)
    layer = wrapped(copy.deepcopy(base), form, [low], [0.7])
    layer(x).square().sum().backward()
    leaf = LowRank(low.down.clone().requires_grad_(), low.up.clone().requires_grad_(), low.alpha)
    changed = {"weight": base.weight.detach() + 0.7 * leaf.delta()}
    torch.func.functional_call(base, changed, x).square().sum().backward()
    (factors,) = layer.factors()
    torch.testing.assert_close(factors.down.grad, leaf.down.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(factors.up.grad, leaf.up.grad, rtol=1e-4, atol=1e-4)
    assert layer.base.weight.grad is None


def test_changing_the_weight_does_not_recompile() -> None:
    layer = wrapped(nn.Linear(5, 5), "weight", [random_update(torch.empty(5, 5), 2)], [1.0])
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(layer, backend=backend, fullgraph=True)
    x = torch.randn(3, 5)
    for weight in (1.0, 0.25, -3.0):
        next(iter(layer.factors())).weight.fill_(weight)
        assert torch.equal(compiled(x), layer(x))
    assert len(graphs) == 1


def test_auto_form_follows_size_and_groups() -> None:
    side = int(WEIGHT_SPACE_LIMIT**0.5)
    assert wrap(nn.Linear(side, side)).form == "weight"
    assert wrap(nn.Linear(side, side + 1)).form == "branch"
    assert wrap(nn.Conv2d(side * 2, side * 2, 1, groups=2)).form == "weight"
    assert wrap(nn.Conv2d(4, 4, 1, groups=2), "branch").form == "weight"


def test_attributes_are_those_of_the_base() -> None:
    linear, conv = nn.Linear(3, 5), nn.Conv2d(3, 5, (1, 3), stride=2, padding="valid", padding_mode="circular")
    for base in (linear, conv):
        layer = wrap(base)
        public = {"weight", "bias", *base.__constants__} - {"output_padding"}
        assert all(getattr(layer, name) is getattr(base, name) for name in public)
    assert wrap(layer) is layer
