"""A blend is the weighted sum whose weights it learns, and nothing but the weights learns."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loractl.data.examples import Example
from loractl.data.latents import Latents
from loractl.families.sd import StableDiffusion
from loractl.inject.inject import base_tensors, collect, load_into
from loractl.tensors.adapter import Adapter, content_hash
from loractl.tensors.algebra import combine, scaled
from loractl.tensors.lowrank import LowRank
from loractl.train.batches import Source
from loractl.train.blend import Blend, BlendLoss, Strand
from loractl.train.loop import Plan, Training, fit
from loractl.train.optim import make_optimizer
from tests.datasets.photos import save_photo
from tests.train.blending import ADAPTERS, TARGETS, tiny_model
from tests.train.network import ignore

NOISY = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def strands(**start: float) -> dict[str, Strand]:
    """One weight for all of an adapter."""
    return {
        name: Strand(Adapter(ADAPTERS[name]), {"weight": value}, dict.fromkeys(ADAPTERS[name], "weight"))
        for name, value in start.items()
    }


def say(model: StableDiffusion) -> Tensor:
    return model.predict(NOISY, torch.arange(3) * 300, model.encode_text(["a toy"] * 3))


@torch.no_grad()
def said_with(modules: Mapping[str, LowRank]) -> Tensor:
    """The prediction of a model with one adapter at weight 1."""
    model, adapter = tiny_model(), Adapter(modules)
    for component in adapter.components():
        load_into(model.components[component], adapter.component(component))
    return say(model)


def learn(blend: Blend, loss: Callable[[int, int], Tensor], steps: int) -> dict[str, dict[str, float]]:
    groups = [blend.group(0.05)]
    plan = Plan(steps, max_grad_norm=None, schedule="cosine")
    fit(Training(groups, make_optimizer(groups, "adamw"), plan), loss, ignore)
    blend.settle()
    return blend.values()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    paths = [save_photo(tmp_path / f"{i}.png", (64, 64), seed=i) for i in range(2)]
    examples = [Example(path, "a toy") for path in paths]
    encode = tiny_model().encode_pictures
    return Source("reference", Latents(examples, [(64, 64)] * 2, encode, torch.device("cpu")), seed=1)


def test_a_blend_is_the_exact_merge() -> None:
    blend = Blend(tiny_model(), strands(one=0.7, two=-0.3))
    merge = said_with(combine([ADAPTERS["one"], ADAPTERS["two"]], [0.7, -0.3]))
    torch.testing.assert_close(say(blend.model), merge)
    assert not torch.allclose(merge, said_with(ADAPTERS["one"]), atol=1e-3)


def test_each_module_follows_its_weight_and_the_others_rest() -> None:
    weights = {"to_q": 0.5, "to_k": -1.0}
    modules = ADAPTERS["one"] | ADAPTERS["two"]
    follows = {path: end for path in modules for end in weights if path.endswith(end)}
    blend = Blend(tiny_model(), {"both": Strand(Adapter(modules), weights, follows, rest=0.25)})
    wanted = {path: scaled(low, weights[follows[path]] if path in follows else 0.25) for path, low in modules.items()}
    torch.testing.assert_close(say(blend.model), said_with(wanted))


def test_alone_means_at_weight_one_and_without_the_others() -> None:
    blend = Blend(tiny_model(), strands(one=0.7, two=-0.3))
    before = say(blend.model)
    for name in ADAPTERS:
        with blend.alone(name):
            torch.testing.assert_close(say(blend.model), said_with(ADAPTERS[name]))
    assert torch.equal(say(blend.model), before)


def test_only_the_weights_learn(source: Source) -> None:
    blend = Blend(tiny_model(), strands(one=0.5, two=0.5))
    networks = blend.model.components.values()
    before = [content_hash(base_tensors(network)) for network in networks]
    values = learn(blend, BlendLoss(blend, source, 2, {"one": "a cat", "two": "a dog"}, 1.0), 3)
    assert all(abs(own["weight"] - 0.5) > 0.01 for own in values.values())
    assert [content_hash(base_tensors(network)) for network in networks] == before
    for name, modules in ADAPTERS.items():
        kept = {
            f"{component}.{path}": low
            for component in TARGETS[name]
            for path, low in collect(blend.model.components[component], name).items()
        }
        assert kept.keys() == modules.keys()
        assert all(torch.equal(low.up, modules[path].up) for path, low in kept.items())
        assert all(torch.equal(low.down, modules[path].down) for path, low in kept.items())
    assert not any(p.requires_grad or p.grad is not None for network in networks for p in network.parameters())


def test_planted_weights_are_found_when_the_planted_model_is_the_teacher() -> None:
    blend = Blend(tiny_model(), strands(one=0.5, two=0.5))
    planted = said_with(combine([ADAPTERS["one"], ADAPTERS["two"]], [0.7, 0.3]))

    def distance(_step: int, _part: int) -> Tensor:
        blend.follow()
        return 1e4 * (say(blend.model) - planted).square().mean()

    values = learn(blend, distance, 60)
    assert values["one"]["weight"] == pytest.approx(0.7, abs=0.01)
    assert values["two"]["weight"] == pytest.approx(0.3, abs=0.01)


def test_the_penalty_is_how_far_the_merge_is_from_each_adapter_alone(source: Source) -> None:
    """Of one adapter: nothing at weight 1, where the merge is the adapter."""
    keep = {"one": "a cat"}
    for weight, is_far in ((1.0, False), (0.5, True)):
        blend = Blend(tiny_model(), strands(one=weight))
        plain, doubled = (BlendLoss(blend, source, 2, keep, penalty)(0, 0).item() for penalty in (1.0, 2.0))
        without = BlendLoss(blend, source, 2)(0, 0).item()
        assert doubled - without == pytest.approx(2 * (plain - without), abs=1e-6)
        assert (plain - without > 1e-6) is is_far


def test_a_strong_penalty_brings_an_adapter_back(source: Source) -> None:
    blend = Blend(tiny_model(), strands(one=0.6))
    values = learn(blend, BlendLoss(blend, source, 2, {"one": "a cat"}, 1e6), 30)
    assert values["one"]["weight"] == pytest.approx(1.0, abs=0.1)
