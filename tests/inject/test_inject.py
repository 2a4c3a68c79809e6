"""Adapters on a real, tiny UNet: put on, trained, collected, loaded, weighted, removed; the base stays what it was."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from loractl.errors import JobError, MismatchError
from loractl.inject.inject import (
    adapter,
    adapter_parameters,
    base_tensors,
    collect,
    hash_of,
    inject,
    injected,
    load_into,
    remove,
    set_weight,
)
from loractl.inject.layers import Form, LoraInjectedConv2d, LoraInjectedLinear
from loractl.inject.targets import Target, resolve
from loractl.tensors.lowrank import LowRank

from .models import denoise, disturb, tiny_unet


def test_at_the_start_the_output_is_the_base_s_to_the_bit() -> None:
    for form in ("auto", "weight", "branch"):
        assert_same_start(form)


def assert_same_start(form: Form) -> None:
    model = tiny_unet()
    expected = denoise(model)
    paths = inject(model, resolve(model, ["extended"], rank=4), form=form)
    assert paths == list(injected(model))
    assert {type(layer) for layer in injected(model).values()} == {LoraInjectedLinear, LoraInjectedConv2d}
    assert torch.equal(denoise(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_start_and_end_unchanged(dtype: torch.dtype) -> None:
    model = tiny_unet(dtype)
    expected, base = denoise(model, dtype), hash_of(model)
    inject(model, resolve(model, ["extended"], rank=4))
    assert torch.equal(denoise(model, dtype), expected)
    disturb(model)
    assert not torch.equal(denoise(model, dtype), expected)
    assert hash_of(model) == base
    remove(model)
    assert torch.equal(denoise(model, dtype), expected)


def test_training_changes_the_factors_and_no_base_tensor() -> None:
    """AdamW with weight decay over all parameters of the model: what is not an adapter must not move even then."""
    model = tiny_unet()
    before = hash_of(model)
    model.requires_grad_(False)
    inject(model, resolve(model, ["extended"], rank=4))
    start = copies(adapter_parameters(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        denoise(model).square().mean().backward()
        optimizer.step()
    assert hash_of(model) == before
    assert not any(torch.equal(tensor, start[name]) for name, tensor in adapter_parameters(model).items())
    remove(model)
    assert hash_of(model) == before


def copies(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def test_hash_sees_one_changed_bit_of_the_base() -> None:
    model = tiny_unet()
    before = hash_of(model)
    inject(model, resolve(model, ["attention"], rank=2))
    with torch.no_grad():
        next(iter(injected(model).values())).weight[0, 0].mul_(1 + 2**-22)
    assert hash_of(model) != before


def test_base_tensors_are_the_bare_state_dict() -> None:
    model = tiny_unet()
    bare = model.state_dict()
    inject(model, resolve(model, ["extended"], rank=2))
    added = model.state_dict().keys() - bare.keys()
    assert {key.rpartition(".")[2] for key in added if ".adapters." in key} == {"down", "up"}, "the weight is no state"
    tensors = base_tensors(model)
    assert tensors.keys() == bare.keys()
    assert all(tensors[key].data_ptr() == bare[key].data_ptr() for key in bare)


def test_removal_restores_the_very_same_tree() -> None:
    model = tiny_unet()
    model.requires_grad_(False)
    model.down_blocks[0].requires_grad_(True)
    before = snapshot(model)
    inject(model, resolve(model, ["extended"], rank=4), "a")
    inject(model, resolve(model, ["attention"], rank=2), "b")
    assert not any(layer.weight.requires_grad for layer in injected(model).values())
    remove(model)
    assert snapshot(model) == before


def snapshot(model: nn.Module) -> tuple[object, ...]:
    """Module tree by identity, state dict keys, and every flag."""
    modules = [(path, id(module), module.training) for path, module in model.named_modules()]
    parameters = [(path, id(parameter), parameter.requires_grad) for path, parameter in model.named_parameters()]
    return modules, parameters, list(model.state_dict())


def test_removal_of_one_adapter_leaves_the_others() -> None:
    model = tiny_unet()
    inject(model, resolve(model, ["attention"], rank=2), "a")
    disturb(model, "a")
    alone = denoise(model)
    inject(model, resolve(model, ["extended"], rank=4), "b")
    disturb(model, "b")
    remove(model, "b")
    assert torch.equal(denoise(model), alone)
    assert list(injected(model)) == list(resolve(model, ["attention"], rank=2))


def test_weights_of_several_adapters_add_up() -> None:
    """0.7·a − 0.3·b on the fly is the model whose weights hold that sum."""
    model, summed = tiny_unet(), tiny_unet()
    for name, targets, weight in (("a", "attention", 0.7), ("b", "extended", -0.3)):
        inject(model, resolve(model, [targets], rank=2, alpha=1.0), name)
        disturb(model, name)
        set_weight(model, weight, name)
        for path, low in collect(model, name).items():
            summed.get_submodule(path).weight.data += weight * low.delta()
    torch.testing.assert_close(denoise(model), denoise(summed), rtol=1e-4, atol=1e-5)


def test_weight_zero_is_the_base_to_the_bit() -> None:
    model = tiny_unet()
    expected = denoise(model)
    inject(model, resolve(model, ["extended"], rank=2))
    disturb(model)
    assert not torch.allclose(denoise(model), expected)
    set_weight(model, 0.0)
    assert torch.equal(denoise(model), expected)


def test_what_is_collected_loads_back() -> None:
    model, other = tiny_unet(), tiny_unet()
    inject(model, resolve(model, {"extended": (None, None), "attn2.*": (7, 3.0)}, rank=2), "style")
    disturb(model, "style")
    set_weight(model, 0.5, "style")
    modules = collect(model, "style")
    load_into(other, modules, "mine", weight=0.5)
    assert torch.equal(denoise(other), denoise(model))
    again = collect(other, "mine")
    assert again.keys() == modules.keys()
    for path, low in modules.items():
        assert again[path].alpha == low.alpha
        assert torch.equal(again[path].down, low.down)
        assert torch.equal(again[path].up, low.up)


def test_collected_factors_are_copies() -> None:
    model = tiny_unet()
    inject(model, resolve(model, ["attention"], rank=2))
    (path, low), *_ = collect(model).items()
    before = low.down.clone()
    disturb(model)
    assert torch.equal(low.down, before)
    assert not low.down.requires_grad
    load_into(other := tiny_unet(), {path: low})
    disturb(other)
    assert torch.equal(low.down, before)


def test_a_seed_gives_the_same_factors_of_the_right_spread() -> None:
    first, second, third = (fresh_downs(seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    assert torch.cat([down.flatten() for down in first]).std().item() == pytest.approx(1 / 8, rel=0.05)


def fresh_downs(seed: int) -> list[Tensor]:
    model = tiny_unet()
    inject(model, resolve(model, ["extended"], rank=8), generator=torch.Generator().manual_seed(seed))
    return [low.down for low in collect(model).values()]


def test_parameters_are_named_by_path_and_part() -> None:
    model = tiny_unet()
    paths = inject(model, resolve(model, ["attention"], rank=2))
    named = adapter_parameters(model)
    assert list(named) == [f"{path}.{part}" for path in paths for part in ("down", "up")]
    assert all(parameter.requires_grad for parameter in named.values())
    assert named[f"{paths[0]}.down"] is adapter(model)[paths[0]].down


@pytest.mark.parametrize("name", ["", "style.v2", "pop", "training"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    model = tiny_unet()
    with pytest.raises(JobError, match="cannot name an adapter"):
        inject(model, resolve(model, ["attention"], rank=2), name)
    assert not injected(model)


def test_a_second_adapter_of_one_name_is_refused() -> None:
    model = tiny_unet()
    inject(model, resolve(model, ["to_q"], rank=2), "style")
    with pytest.raises(JobError, match='an adapter "style" already'):
        inject(model, resolve(model, ["to_k"], rank=2), "style")
    with pytest.raises(JobError, match='an adapter "style" already'):
        load_into(model, collect(model, "style"), "style")
    assert all(path.endswith("to_q") for path in injected(model))


def test_an_adapter_that_is_not_there_is_an_error() -> None:
    model = tiny_unet()
    inject(model, resolve(model, ["to_q"], rank=2), "style")
    for act in (collect, adapter_parameters, remove):
        with pytest.raises(JobError, match='no adapter "other" on the model, which has style'):
            act(model, "other")
    with pytest.raises(JobError, match="which has none"):
        set_weight(tiny_unet(), 1.0)


PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def low_rank(down: Iterable[int], up: Iterable[int]) -> LowRank:
    return LowRank(torch.ones(*down), torch.ones(*up), alpha=1.0)


@pytest.mark.parametrize(
    ("bad", "shapes"),
    [
        (low_rank((2, 48), (32, 2)), r"down \(2, 48\) and up \(32, 2\).*weight \(32, 32\)"),
        (low_rank((2, 32), (64, 2)), r"down \(2, 32\) and up \(64, 2\)"),
        (low_rank((2, 32), (32, 3)), r"down \(2, 32\) and up \(32, 3\)"),
        (low_rank((2, 32, 3, 3), (32, 2, 1, 1)), r"down \(2, 32, 3, 3\)"),
    ],
)
def test_a_shape_that_does_not_fit_changes_nothing(bad: LowRank, shapes: str) -> None:
    model = tiny_unet()
    before = snapshot(model)
    good = {path: low_rank((2, 32), (32, 2)) for path in (PATH.replace("to_q", "to_k"), PATH.replace("to_q", "to_v"))}
    with pytest.raises(MismatchError, match=f"{PATH}: .*{shapes}"):
        load_into(model, {**good, PATH: bad})
    assert snapshot(model) == before


def test_a_missing_path_is_named_with_the_nearest() -> None:
    model = tiny_unet()
    before = snapshot(model)
    low = low_rank((2, 32), (32, 2))
    with pytest.raises(MismatchError, match=f"{PATH}_proj: the nearest is {PATH}"):
        load_into(model, {PATH: low, f"{PATH}_proj": low})
    with pytest.raises(MismatchError, match="zzz: it belongs to another base model"):
        inject(model, {"zzz": Target(2, 2.0)})
    assert snapshot(model) == before
