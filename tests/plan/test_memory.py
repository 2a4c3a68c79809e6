"""What is counted on shapes is what real tensors take: the same counters on both give the same numbers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.inject.inject import inject
from loractl.inject.layers import Form
from loractl.inject.targets import resolve
from loractl.plan.autocast import Autocast
from loractl.plan.memory import Pass, largest_block, peak, stored, train_pass
from loractl.plan.shapes import shapes_only
from tests.tiny import tiny_unet

BF16 = torch.bfloat16
# A CPU's autocast leaves norms in the precision that comes in; the rest of its table is CUDA's, as far as it matters.
ON_CPU = {"full": ()}


def count(
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    dtype: torch.dtype = torch.float32,
    checkpointed: bool = False,
    form: Form = "auto",
) -> Pass:
    """A step of a tiny UNet with adapters, on whatever tensors are made at the moment."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    unet = tiny_unet().requires_grad_(False)
    torch.set_default_dtype(before)
    inject(unet, resolve(unet, ["attention"], 4), form=form)
    x, t, text = torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 77, 32)

    def forward() -> Tensor:
        with arithmetic():
            out: Tensor = unet(x, t, text, return_dict=False)[0]
        return out

    return train_pass([unet], forward, unet if checkpointed else None)


def on_shapes(*arguments: Any, **settings: Any) -> Pass:
    with shapes_only():
        return count(*arguments, **settings)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["all", "checkpointed"])
def test_a_step_on_shapes_keeps_and_computes_what_a_real_one_does(checkpointed: bool) -> None:
    assert on_shapes(checkpointed=checkpointed) == count(checkpointed=checkpointed)


def test_recomputing_keeps_less_and_computes_more() -> None:
    plain, again = on_shapes(), on_shapes(checkpointed=True)
    assert again.kept < plain.kept / 2
    assert again.forward == plain.forward
    assert plain.backward < again.backward < plain.backward + plain.forward


def test_lower_precision_on_shapes_keeps_what_autocast_does() -> None:
    """Adapters as branches: in the other form ΔW is made outside autocast, which is nothing in a model of full size."""
    real = count(lambda: torch.autocast("cpu", BF16), BF16, form="branch")
    assert on_shapes(lambda: Autocast(BF16, **ON_CPU), BF16, form="branch").kept == real.kept
    # CUDA's norms compute in fp32, and what they are given and give is kept in it
    assert real.kept < on_shapes(lambda: Autocast(BF16), BF16, form="branch").kept


def encode(width: int) -> int:
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.SiLU(), nn.Conv2d(width, 2, 3)).requires_grad_(False)
    x = torch.zeros(1, 3, 10, 10)
    return peak([network], lambda: network(x))


def test_the_peak_without_gradients_is_of_what_lives_at_once() -> None:
    with shapes_only():
        found = encode(16)
    assert found == encode(16)
    # a width of 8 × 8 pixels before and after the activation, in fp32; the output is smaller
    assert found == 2 * 4 * 16 * 8 * 8


def test_weights_take_their_bits() -> None:
    network = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Conv2d(4, 4, 1))
    linear, rest = 64 * 32, 32 + 64 + 16 + 4
    assert stored(network, 2) == 2 * (linear + rest)
    assert stored(network, 2, "fp8") == stored(network, 2, "int8") == linear + 2 * rest
    assert stored(network, 2, "nf4") == linear // 2 + 4 * linear // 64 + 2 * rest


def test_the_largest_block_moves() -> None:
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 8)])
    network.head = nn.Linear(100, 100)
    assert largest_block(network, 2) == 2 * (4 * 8 + 8)
