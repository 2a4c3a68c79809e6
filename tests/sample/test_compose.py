"""Two engines with one result, W + Σ wᵢ·ΔWᵢ; the cache counts what it spares and stays in its bounds."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loractl.sample.ahead import Thread
from loractl.sample.compose import Branch, Cache, Composed, choose
from loractl.sample.stack import Change, Plan, Stack
from tests.sample.nets import CPU, VECTOR, X, make, merged

Engines = [lambda net, plan: Composed(net, plan, Cache(10**6)), Branch]


@pytest.mark.parametrize("engine", Engines, ids=["composed", "branch"])
def test_an_engine_is_the_static_merge(engine: Callable[[nn.Module, Plan], Any]) -> None:
    net, plan, updates = make()
    plain = net(X)
    running = engine(net, plan)
    for vector in (VECTOR, (0.0, 1.0, 0.0), (-1.5, 0.0, 3.0)):
        running.write(vector)
        reference = make()[0]
        merged(reference, updates, vector)
        assert not torch.allclose(net(X), plain, atol=0.01)
        torch.testing.assert_close(net(X), reference(X), atol=1e-5, rtol=1e-5)
    running.off()
    assert torch.equal(net(X), plain)
    running.write(VECTOR)
    running.close()
    assert torch.equal(net(X), plain) and [*net.state_dict()] == [*reference.state_dict()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_rounded_once_and_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    net, plan, updates = make(dtype)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    engine = Composed(net, plan, Cache(10**6))
    for number in range(20):
        engine.write((0.1 * number + 0.1, *VECTOR[1:]))
    reference = make(dtype)[0]
    merged(reference, updates, (2.0, *VECTOR[1:]))
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(net.state_dict(), reference.state_dict(), atol=4 * tolerance, rtol=tolerance)
    engine.off()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_each_weight_vector_is_composed_once() -> None:
    net, plan, _ = make()
    cache = Cache(10**6)
    engine = Composed(net, plan, cache)
    vectors = [(weight, 1.0, 0.5) for weight in (0.0, 0.25, 0.5, 0.25, 0.0)]
    for vector in vectors:
        engine.write(vector)
    assert cache.formed["unet"] == 3
    for vector in vectors:
        engine.write(vector)
    assert cache.formed["unet"] == 3
    engine.write((0.0, 0.0, 0.0))
    assert cache.formed["unet"] == 3, "the plain network is no composition"
    Composed(net, plan, cache).write(vectors[0])
    assert cache.formed["unet"] == 3, "another engine on the same plan finds them"


def test_layers_without_weight_are_not_copied() -> None:
    net, plan, _ = make()
    base = net.linear.weight.data
    Composed(net, plan, cache := Cache(10**6)).write((0.0, 0.0, 1.0))
    assert cache.used == net.grouped.weight.nbytes and net.linear.weight.data_ptr() == base.data_ptr()


def test_the_least_recently_used_composition_goes() -> None:
    net, plan, _ = make()
    cache = Cache(2 * plan.size)
    engine = Composed(net, plan, cache)
    a, b, c = ((weight, 1.0, 1.0) for weight in (1.0, 2.0, 3.0))
    for vector, formed in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4)):
        engine.write(vector)
        assert cache.formed["unet"] == formed


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.floats(0, 3.5))
def test_the_cache_keeps_its_bounds_and_the_result_does_not_depend_on_it(order: list[int], rooms: float) -> None:
    net, plan, updates = make()
    cache = Cache(int(rooms * plan.size))
    engine = Composed(net, plan, cache)
    for number in order:
        engine.write((float(number), 1.0, 1.0))
        assert cache.used + cache.spare <= cache.limit
    assert len({*order}) <= cache.formed["unet"] <= len(order)
    reference = make()[0]
    merged(reference, updates, (float(order[-1]), 1.0, 1.0))
    torch.testing.assert_close(net(X), reference(X), atol=1e-4, rtol=1e-5)


VECTORS = st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VECTORS, st.booleans(), st.sampled_from([0, 0, 1, 2])), max_size=15), st.floats(0, 3.5))
def test_memory_of_what_has_gone_serves_again_and_nothing_in_use_is_written_to(
    turns: list[tuple[tuple[float, ...], bool, int]], rooms: float
) -> None:
    net, plan, _ = make()
    cache = Cache(int(rooms * plan.size))
    engine, other = Composed(net, plan, cache, Thread()), make()[0]
    alone = Composed(other, plan, Cache(0))
    for (vector, ahead, gone), (following, _, _) in pairwise([*turns, ((0.0, 0.0, 0.0), False, 0)]):
        if gone:
            engine.off()
            cache.forget(gone)
        engine.write(vector)
        alone.write(vector)
        if ahead:
            engine.prefetch(following)
            engine.prefetch(vector[::-1])
        assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in net.state_dict().items())
        assert cache.used + cache.spare <= cache.limit
    engine.close()


def test_an_adapter_that_is_forgotten_leaves_its_memory_to_the_next() -> None:
    net, plan, _ = make()
    cache = Cache(2 * plan.size)
    engine = Composed(net, plan, cache)
    engine.write((1.0, 0.0, 0.0))
    places = {net.conv.weight.data_ptr(), net.linear.weight.data_ptr()}
    engine.off()
    cache.forget(2)
    assert cache.used and not cache.spare, "it has no part in what there is"
    cache.forget(1)
    assert not cache.used and cache.spare
    engine.write((2.0, 0.0, 0.0))
    assert {net.conv.weight.data_ptr(), net.linear.weight.data_ptr()} == places and cache.formed["unet"] == 2
    cache.clear()
    assert not cache.used and not cache.spare


@pytest.mark.parametrize("engine", Engines, ids=["composed", "branch"])
def test_a_change_of_weights_compiles_nothing_again(engine: Callable[[nn.Module, Plan], Any]) -> None:
    net, plan, _ = make()
    if engine is not Branch:
        gain = Change(gain=torch.rand(5, 1))
        more = {
            "free.weight": Stack.of([(1, gain)], CPU),
            "conv.bias": Stack.of([(0, Change(whole=torch.ones(6)))], CPU),
        }
        sizes = {name: net.get_parameter(name).nbytes for name in (*plan.stacks, *more)}
        plan = Plan.of("unet", {**plan.stacks, **more}, plan.meanings, sizes)
    running, graphs = engine(net, plan), list[object]()

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend)
    running.write(VECTOR)
    with torch.no_grad():
        compiled(X)
        first = len(graphs)
        assert first >= 1
        for number in range(4):
            running.write((0.1 * number, 1.0, -float(number)))
            torch.testing.assert_close(compiled(X), net(X))
    assert len(graphs) == first


def test_the_choice_of_an_engine() -> None:
    gigabyte = 10**9
    assert choose(1, gigabyte, gigabyte) == "composed"
    assert choose(25, gigabyte, 2 * gigabyte) == "composed", "the one in use and the next one fit"
    assert choose(2, gigabyte, 2 * gigabyte - 1) == "branch"
    assert choose(1, gigabyte, gigabyte - 1) == "branch"
    assert choose(0, gigabyte, 0) == "composed", "the plain model needs no room"
