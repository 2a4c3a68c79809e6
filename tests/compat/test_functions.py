"""The functions on one network: laws that the original broke, and what is refused before anything changes."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from loractl.compat import (
    UNET_EXTENDED_TARGET_REPLACE,
    collapse_lora,
    extract_lora_ups_down,
    inject_trainable_lora,
    inject_trainable_lora_extended,
    inspect_lora,
    monkeypatch_add_lora,
    monkeypatch_or_replace_lora,
    monkeypatch_or_replace_lora_extended,
    monkeypatch_remove_lora,
    set_lora_diag,
    tune_lora_scale,
)
from loractl.errors import JobError, LoractlError, MismatchError
from loractl.inject.inject import inject
from loractl.inject.targets import resolve
from tests.compat.networks import assert_near, deltas, disturb, pairs, wrappers
from tests.inject.models import denoise, tiny_unet

EXTENDED = set(UNET_EXTENDED_TARGET_REPLACE)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return tiny_unet()


def with_lora(rank: int, seed: int) -> UNet2DConditionModel:
    model = tiny_unet()
    inject_trainable_lora_extended(model, r=rank)
    disturb(model, seed)
    return model


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.7, -0.3), (0.0, 2.0), (1.5, 0.0)])
def test_adding_is_the_sum_of_the_updates(alpha: float, beta: float) -> None:
    """The original blends the factors, which makes cross terms up_i · down_j."""
    model, other = with_lora(2, 0), with_lora(3, 1)
    set_lora_diag(model, torch.tensor([0.5, -1.0]))
    old, new = deltas(model), deltas(other)
    tune_lora_scale(model, 0.4)
    monkeypatch_add_lora(model, pairs(other, EXTENDED), EXTENDED, alpha, beta)
    assert_near(deltas(model), {path: 0.4 * (alpha * new[path] + beta * old[path]) for path in old})
    assert all(layer.lora_up.weight.requires_grad for layer in wrappers(model).values())


def test_the_output_is_linear_in_the_scale_in_weight_space() -> None:
    model = with_lora(2, 0)
    full = deltas(model)
    for scale in (0.0, 0.3, -2.0):
        tune_lora_scale(model, scale)
        assert_near(deltas(model), {path: scale * each for path, each in full.items()})
    tune_lora_scale(model, 0.0)
    assert torch.equal(denoise(model), denoise(tiny_unet()))
    assert set(inspect_lora(model)) == set(full) and not any(moved for (moved,) in inspect_lora(model).values())


def test_inspection_says_how_far_each_layer_has_moved() -> None:
    model = with_lora(2, 0)
    tune_lora_scale(model, -0.5)
    right = {path: float(each.abs().mean()) for path, each in deltas(model).items()}
    assert {path: moved for path, (moved,) in inspect_lora(model).items()} == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_collapsing_keeps_the_precision_of_the_model_and_rounds_once(dtype: torch.dtype) -> None:
    model = tiny_unet(dtype)
    inject_trainable_lora_extended(model, r=2)
    disturb(model)
    right = {path: model.get_submodule(path).weight.double() + each for path, each in deltas(model).items()}
    collapse_lora(model)
    monkeypatch_remove_lora(model)
    for path, weight in right.items():
        found = model.get_submodule(path).weight
        assert found.dtype == dtype
        assert torch.allclose(found.double(), weight, rtol=1.1 * torch.finfo(dtype).eps, atol=1e-7), path


def test_removal_puts_the_very_layers_back(unet: UNet2DConditionModel) -> None:
    unet.requires_grad_(True)
    before = dict(unet.named_modules())
    inject_trainable_lora_extended(unet)
    assert unet.state_dict().keys() != tiny_unet().state_dict().keys()
    monkeypatch_remove_lora(unet)
    after = dict(unet.named_modules())
    assert before.keys() == after.keys() and all(after[path] is module for path, module in before.items())
    assert all(parameter.requires_grad for parameter in unet.parameters())
    monkeypatch_remove_lora(unet)  # of nothing is no error


def test_a_second_injection_is_for_the_layers_without(unet: UNet2DConditionModel) -> None:
    _, first = inject_trainable_lora(unet, {"CrossAttention"}, r=2)
    disturb(unet)
    kept = deltas(unet)
    _, second = inject_trainable_lora_extended(unet, r=3, target_replace_module=EXTENDED)
    assert set(first) == {"to_q", "to_k", "to_v", "0"}, "CrossAttention is called Attention nowadays"
    assert {"proj", "conv1", "conv2", "time_emb_proj"} <= set(second)
    assert_near({path: each for path, each in deltas(unet).items() if path in kept}, kept, 0.0)
    with pytest.raises(MismatchError, match="no layer without LoRA"):
        inject_trainable_lora_extended(unet)


def test_training_goes_on_from_a_list_in_a_file(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    inject_trainable_lora(unet, r=2)
    disturb(unet)
    tensors = pairs(unet, {"Attention", "GEGLU"})
    torch.save(tensors, tmp_path / "lora.pt")
    other = tiny_unet()
    groups, _ = inject_trainable_lora(other, r=2, loras=str(tmp_path / "lora.pt"), scale=0.5)
    assert all(torch.equal(group[0], tensor) for group, tensor in zip(groups, tensors, strict=True))
    assert_near(deltas(other), {path: 0.5 * each for path, each in deltas(unet).items()})


# --- orders ----------------------------------------------------------------------------------------------------------


def legacy(tensors: list[Tensor]) -> list[Tensor]:
    """A list in the order of diffusers up to 0.14: in each transformer block of nine, ff comes fifth and not last."""
    blocks = [tensors[n : n + 18] for n in range(0, len(tensors), 18)]
    return [each for block in blocks for each in (*block[:8], *block[16:], *block[8:16])]


def test_a_list_in_either_order_reaches_the_same_modules(unet: UNet2DConditionModel) -> None:
    other = with_lora(2, 3)
    tensors = pairs(other, {"Attention", "GEGLU"})
    right = {path: each for path, each in deltas(other).items() if ".resnets." not in path}
    for arranged in (tensors, legacy(tensors)):
        monkeypatch_or_replace_lora(unet, arranged, r=2)
        assert_near(deltas(unet), right, 0.0)


def test_matrices_alone_pass_convolutions_over(unet: UNet2DConditionModel) -> None:
    other = with_lora(2, 3)
    linear = [tensor for tensor in pairs(other, EXTENDED) if tensor.ndim == 2]
    monkeypatch_or_replace_lora_extended(unet, linear, EXTENDED)
    assert_near(deltas(unet), {path: each for path, each in deltas(other).items() if each.ndim == 2}, 0.0)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_changes_nothing(unet: UNet2DConditionModel) -> None:
    tensors = pairs(with_lora(2, 3), {"Attention", "GEGLU"})
    swapped = [*tensors[2:4], *tensors[:2], *tensors[4:]]
    wide = [torch.zeros(7, 2), *tensors[1:]]
    wrong = [
        (tensors[2:], "35 pairs of up and down are not for the 36 layers"),
        (tensors[:-1], "71 tensors is not of pairs"),
        (wide, r"attn1\.to_q has a weight \(16, 16\) and its pair of up and down changes one of \(7, 16\)"),
        ([tensors[0], tensors[0], *tensors[2:]], r"no up \(out, r, \*1\) and down"),
    ]
    for lists, says in wrong:
        with pytest.raises(MismatchError, match=says):
            monkeypatch_or_replace_lora(unet, lists)
    assert not wrappers(unet)
    monkeypatch_or_replace_lora(unet, swapped)  # two matrices of one shape: nobody can tell
    before = deltas(unet)
    with pytest.raises(MismatchError, match="7, 16"):
        monkeypatch_add_lora(unet, wide)
    with pytest.raises(MismatchError, match=r"a LoRA of rank 2, which a diagonal \(3,\) doesn't fit"):
        set_lora_diag(unet, torch.ones(3))
    assert_near(deltas(unet), before, 0.0)


def refusals(unet: nn.Module) -> list[tuple[object, type[LoractlError], str]]:
    return [
        (lambda: extract_lora_ups_down(unet), JobError, "no LoRA in modules of the classes Attention, CrossAttention"),
        (lambda: monkeypatch_add_lora(unet, []), JobError, "call inject_trainable_lora or patch_pipe first"),
        (lambda: inject_trainable_lora(unet, {"Attend"}), MismatchError, "name other classes"),
        (lambda: inject_trainable_lora(unet, r=17), JobError, "rank 17 is more than a layer of 16 inputs"),
    ]


@pytest.mark.parametrize("which", range(4))
def test_other_refusals(unet: UNet2DConditionModel, which: int) -> None:
    call, error, says = refusals(unet)[which]
    with pytest.raises(error, match=says):
        call()  # type: ignore[operator]
    assert not wrappers(unet)


def test_a_network_with_adapters_of_the_core_is_left_alone(unet: UNet2DConditionModel) -> None:
    inject(unet, resolve(unet, ["attn2.to_k"], 2))
    trainable = [parameter.requires_grad for parameter in unet.parameters()]
    with pytest.raises(JobError, match=r"adapters of loractl\.inject"):
        monkeypatch_or_replace_lora(unet, pairs(with_lora(2, 3), {"Attention", "GEGLU"}))
    assert not wrappers(unet)
    assert [parameter.requires_grad for parameter in unet.parameters()] == trainable
