"""The wrappers by the original's names: their formula, and the attributes that people touch."""

import pytest
import torch
from torch import Tensor, nn

from loractl.compat import LoraInjectedConv2d, LoraInjectedLinear
from loractl.errors import JobError, MismatchError

CONVOLUTIONS = [(8, 6, 3), (8, 6, (3, 1), 2, (1, 0), 1), (8, 4, 3, 1, 2, 2, 2), (8, 6, 1, 1, 0, 1, 1, False)]


def layers() -> list[LoraInjectedLinear | LoraInjectedConv2d]:
    torch.manual_seed(0)
    built = [LoraInjectedLinear(8, 6, r=3), LoraInjectedLinear(8, 6, True, 2, 0.1, 0.5)]
    return [*built, *(LoraInjectedConv2d(*sizes, r=3) for sizes in CONVOLUTIONS)]  # type: ignore[arg-type]


def picture(layer: nn.Module) -> Tensor:
    return torch.randn(2, 8) if isinstance(layer, LoraInjectedLinear) else torch.randn(2, 8, 7, 5)


def disturb(layer: LoraInjectedLinear | LoraInjectedConv2d) -> None:
    layer.lora_up.weight.data.normal_()
    layer.lora_down.weight.data.normal_()


@pytest.mark.parametrize("which", range(6))
def test_the_output_is_that_of_the_summed_weight(which: int) -> None:
    layer = layers()[which].eval()
    x = picture(layer)
    assert torch.equal(layer(x), layer.base(x)), "up = 0"
    disturb(layer)
    diag = torch.tensor([0.5, -2.0, 3.0][: layer.r])
    layer.set_selector_from_diag(diag)
    layer.scale = 0.7
    up, down = layer.lora_up.weight.detach().flatten(1), layer.lora_down.weight.detach().flatten(1)
    delta = (0.7 * up @ torch.diag(diag) @ down).view(layer.weight.shape)
    summed = layer.base
    summed.weight = nn.Parameter(summed.weight + delta)
    expected = summed(x).detach()
    summed.weight = nn.Parameter(summed.weight - delta)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert (layer(x) - summed(x)).abs().max() > 0.1
    realized_up, realized_down = layer.realize_as_lora()
    assert torch.allclose((realized_up.flatten(1) @ realized_down.flatten(1)).view(delta.shape), delta, atol=1e-5)


def test_what_the_constructors_set() -> None:
    linear = LoraInjectedLinear(8, 6, r=3, dropout_p=0.2, scale=0.5)
    assert (linear.r, linear.scale, linear.dropout.p) == (3, 0.5, pytest.approx(0.2))
    assert linear.linear.bias is None and (linear.linear.in_features, linear.linear.out_features) == (8, 6)
    assert (linear.lora_up.weight.shape, linear.lora_down.weight.shape) == ((6, 3), (3, 8))
    conv = LoraInjectedConv2d(8, 6, 3, 2, 1, r=2)
    assert conv.conv.bias is not None and (conv.conv.stride, conv.conv.padding) == ((2, 2), (1, 1))
    assert (conv.lora_up.weight.shape, conv.lora_down.weight.shape) == ((6, 2, 1, 1), (2, 8, 3, 3))
    assert torch.equal(conv.selector, torch.ones(2)) and (conv.scale, conv.dropout.p) == (1.0, pytest.approx(0.1))


def test_down_starts_with_a_spread_of_one_by_the_rank() -> None:
    torch.manual_seed(0)
    down = LoraInjectedLinear(1000, 50, r=5).lora_down.weight
    assert float(down.detach().std()) == pytest.approx(1 / 5, rel=0.05)


def test_only_the_factors_learn() -> None:
    for layer in layers():
        x = picture(layer)
        disturb(layer)
        layer(x).square().sum().backward()
        learning = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
        assert learning == {"adapters.default.down", "adapters.default.up"}
        assert layer.lora_up.weight.grad is not None and next(layer.lora_down.parameters()).grad is not None


def test_dropout_leaves_out_outputs_of_the_update_while_training() -> None:
    for layer in layers():
        disturb(layer)
        x = picture(layer)
        layer.dropout.p = 0.25
        update = layer.eval()(x) - layer.base(x)
        dropped = (layer.train()(x) - layer.base(x)) / update
        kept = dropped > 0.5
        assert torch.allclose(dropped[kept], torch.tensor(1 / 0.75), atol=1e-2)
        assert torch.allclose(dropped[~kept], torch.tensor(0.0), atol=1e-2)
        assert 0 < kept.float().mean() < 1


def test_other_weights_of_another_rank_may_be_put_in() -> None:
    layer = LoraInjectedLinear(8, 6, r=2).eval()
    up, down = torch.randn(6, 4), torch.randn(4, 8)
    layer.lora_up.weight, layer.lora_down.weight = nn.Parameter(up), nn.Parameter(down)
    x = torch.randn(3, 8)
    assert layer.r == 4
    assert torch.allclose(layer(x), layer.linear(x) + x @ down.T @ up.T, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(JobError, match="rank 7 is more than a layer of 8 inputs and 6 outputs"):
        LoraInjectedLinear(8, 6, r=7)
    with pytest.raises(MismatchError, match=r"shape \(3,\) and the LoRA is of rank 2"):
        LoraInjectedLinear(8, 6, r=2).set_selector_from_diag(torch.ones(3))
