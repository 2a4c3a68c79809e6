"""Weights that are formed while others are in use: the same weights, within the same room, and failures are told."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.sample.ahead import Thread, Work, aside
from loractl.sample.compose import Cache, Composed
from tests.sample.nets import CPU, Net, X, make, merged

A, B, C = ((weight, 1.0, 1.0) for weight in (1.0, 2.0, 3.0))


class Later:
    """Work that is done when its result is asked for, so that a test sees what was begun."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self, work: Work) -> Any:
        self.begun += 1
        return SimpleNamespace(result=work)

    def close(self) -> None:
        pass


def weights_of(net: Net) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize("where", [Later, Thread])
def test_what_is_prefetched_is_what_would_have_been_composed(where: Callable[[], Any]) -> None:
    net, plan, _ = make()
    plain, cache, seen = weights_of(net), Cache(10**6), []
    engine = Composed(net, plan, cache, where())
    for now, following in ((A, B), (B, C), (C, A)):
        engine.write(now)
        engine.prefetch(following)
        seen.append(weights_of(net))
    engine.write(A)
    assert cache.formed["unet"] == 3
    for vector, found in zip((A, B, C), seen, strict=True):
        other = make()[0]
        Composed(other, plan, Cache(0)).write(vector)
        assert all(torch.equal(found[key], tensor) for key, tensor in other.state_dict().items())
    engine.close()
    assert all(torch.equal(tensor, plain[key]) for key, tensor in net.state_dict().items())


def test_nothing_is_prefetched_beyond_the_room_of_the_cache() -> None:
    for room, begun in ((2.0, 1), (1.99, 0), (0, 0)):
        net, plan, _ = make()
        cache, later = Cache(int(room * plan.size)), Later()
        engine = Composed(net, plan, cache, later)
        for now, following in ((A, B), (B, B)):
            engine.write(now)
            engine.prefetch(following)
            assert cache.used <= cache.limit and later.begun == begun
        assert cache.formed["unet"] == 2


def test_what_is_in_use_or_comes_next_does_not_go_for_what_is_prefetched() -> None:
    net, plan, _ = make()
    cache = Cache(2 * plan.size)
    engine = Composed(net, plan, cache, Later())
    for vector in ((1.0, 9.0, 2.0), (1.0, 8.0, 2.0), A):  # the grouped part of the first two is older than the rest
        engine.write(vector)
    formed = cache.formed["unet"]
    engine.prefetch((1.0, 2.0, 2.0))
    for vector in ((1.0, 2.0, 2.0), A):
        engine.write(vector)
    assert cache.formed["unet"] == formed + 1 and cache.used <= cache.limit


def test_what_fails_aside_is_raised_by_the_next_change_and_leaves_the_network_whole() -> None:
    net, plan, updates = make()
    engine = Composed(net, plan, Cache(10**6), Thread())
    engine.write(A)
    stack = plan.stacks["linear.weight"]
    broken = replace(stack, up=stack.up[:-1])
    engine._plan = replace(plan, stacks={**plan.stacks, "linear.weight": broken})
    engine.prefetch(B)
    engine._plan = plan
    with pytest.raises(RuntimeError, match=r"size|shape"):
        engine.write(B)
    engine.write(B)
    reference = make()[0]
    merged(reference, updates, B)
    torch.testing.assert_close(net(X), reference(X), atol=1e-4, rtol=1e-5)
    engine.close()


def test_a_part_whose_weights_stay_is_not_composed_again() -> None:
    net, plan, _ = make()
    engine = Composed(net, plan, Cache(10**6))
    engine.write((0.5, 1.0, 1.0))
    grouped, linear = net.grouped.weight.data_ptr(), net.linear.weight.data_ptr()
    engine.write((0.5, 2.0, 1.0))
    assert net.grouped.weight.data_ptr() == grouped and net.linear.weight.data_ptr() != linear


def test_work_is_done_aside_where_something_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert aside(CPU, False) is None
    for cores, kind in ((1, type(None)), (2, Thread)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert isinstance(aside(CPU), kind)


@pytest.mark.cuda
def test_a_second_stream_composes_the_same() -> None:
    device = torch.device("cuda")
    results = []
    for beside in (None, aside(device)):
        net, plan, _ = make(device=device)
        engine = Composed(net, plan, Cache(10**6), beside)
        said = []
        for number in range(20):
            engine.write((0.1 * number + 0.1, 1.0, 1.0))
            engine.prefetch((0.1 * number + 0.2, 1.0, 1.0))
            said.append(net(X.to(device)))
        engine.close()
        results.append(torch.stack(said))
    assert torch.equal(*results)
