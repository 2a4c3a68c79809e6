"""What training and encoding keep in memory, counted on shapes: the bytes of weights, activations and optimizer states.

What backward keeps of a forward pass is asked of autograd itself: every tensor that it saves goes through a hook, and
the storages behind them are summed up, each once and the networks' own weights not at all.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# Bytes that an optimizer keeps for each trained parameter beside it and its gradient, all in fp32: two moments for
# Adam, one for Lion; Prodigy has the first point and its own sum besides. Adafactor keeps rows and columns.
STATES: Mapping[str, float] = {
    "adamw": 8,
    "adamw8bit": 2,
    "adafactor": 0,
    "lion": 4,
    "prodigy": 16,
    "schedulefree-adamw": 8,
}
# Bytes of a linear layer's weight in storage: NF4 has half a byte and an fp32 scale for 64 of them (QLoRA, section 3,
# without double quantization); int8 has a scale for each row, which is nothing.
QUANTIZED: Mapping[str, float] = {"nf4": 0.5 + 4 / 64, "int8": 1, "fp8": 1}
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Pass:
    """Of one forward pass with its backward: the bytes kept in between, and floating-point operations (a
    multiplication and an addition are two).
    """

    kept: int
    forward: int
    backward: int


class Kept:
    """Storages that are kept for backward, each once; those in `known` are there anyway."""

    def __init__(self, known: Collection[int] = ()) -> None:
        self.known = frozenset(known)
        self.storages: dict[int, UntypedStorage] = {}  # held, lest another takes the address

    def add(self, values: Any) -> None:
        for each in tree_leaves(values):
            if isinstance(each, Tensor) and address(each) not in self.known:
                self.storages[address(each)] = each.untyped_storage()

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.add(tensor)
        return tensor

    def bytes(self, less: "Kept | None" = None) -> int:
        """All of them, or those that another does not have."""
        other = less.storages if less else {}
        return sum(storage.nbytes() for key, storage in self.storages.items() if key not in other)


def address(tensor: Tensor) -> int:
    """What tells a storage from others; those of shapes have no other address."""
    return int(tensor.untyped_storage()._cdata)


def addresses(networks: Iterable[nn.Module]) -> set[int]:
    """Of all parameters and buffers."""
    return {address(tensor) for network in networks for tensor in (*network.parameters(), *network.buffers())}


def train_pass(networks: Sequence[nn.Module], forward: Callable[[], Tensor], checkpointed: Any = None) -> Pass:
    """What one step of `forward` (→ what is compared with the target) costs.

    `checkpointed` is a diffusers model that recomputes its blocks: then of every block its inputs are kept, and of one
    block at a time all the rest; and its forward pass is done twice.
    """
    outer = Kept(addresses(networks))
    with flops() as counter, _recomputing(checkpointed, outer, counter) as blocks, outer.hooks():
        out = forward()
        ahead = counter.get_total_flops()
        out.float().square().mean().backward()
    largest = max((block.bytes(less=outer) for block in blocks.kept), default=0)
    return Pass(outer.bytes() + largest, ahead, counter.get_total_flops() - ahead + blocks.flops)


def peak(networks: Sequence[nn.Module], call: Callable[[], object]) -> int:
    """The most bytes that are alive at one time while `call` runs without gradients."""
    live = Live(addresses(networks))
    with torch.no_grad(), live:
        call()
    return live.most


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside while they live."""

    def __init__(self, known: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no annotations
        self._seen = set(known)
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and address(each) not in self._seen:
                self._begin(each.untyped_storage())
        return out

    def _begin(self, storage: UntypedStorage) -> None:
        key, size = int(storage._cdata), storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def stored(network: nn.Module, itemsize: int, quantize: str = "none") -> int:
    """Bytes of a network's weights, those of its linear layers in fewer bits where `quantize` says so."""
    total = sum(parameter.numel() for parameter in network.parameters())
    few = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    return int(QUANTIZED.get(quantize, itemsize) * few + itemsize * (total - few))


def largest_block(network: nn.Module, itemsize: int, quantize: str = "none") -> int:
    """Bytes of the largest item in a network's lists of blocks, which is what moves at a time when it is offloaded."""
    lists = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    return max((stored(block, itemsize, quantize) for each in lists for block in each), default=0)


@dataclass
class _Blocks:
    kept: list[Kept] = field(default_factory=list)
    flops: int = 0


@contextmanager
def _recomputing(network: Any, outer: Kept, counter: FlopCounterMode) -> Iterator[_Blocks]:
    """While it is open, blocks of `network` put their inputs into `outer` and the rest into one Kept each."""
    blocks = _Blocks()
    if network is None:
        yield blocks
        return

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        outer.add(inputs)
        inner, before = Kept(outer.known), counter.get_total_flops()
        with inner.hooks():
            out = block(*inputs)
        blocks.kept.append(inner)
        blocks.flops += counter.get_total_flops() - before
        return out

    network.enable_gradient_checkpointing(run)
    yield blocks
    network.disable_gradient_checkpointing()


def flops() -> FlopCounterMode:
    """Counts operations; shapes are of tensors on a CPU, whose attention torch does not count by itself."""
    mapping = {
        _CPU_ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        _CPU_ATTENTION_BACKWARD: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)
