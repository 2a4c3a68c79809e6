"""Which layers presets and patterns choose."""

import pytest
import torch
from torch import nn

from loractl.errors import MismatchError
from loractl.inject.inject import inject, remove
from loractl.inject.targets import PRESETS, Target, matches, resolve

from .models import tiny_unet

PATH = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize("pattern", [PATH, "to_k", "attn2.to_k", "*.to_k", "down_blocks.*", "attn?.to_[kv]"])
def test_pattern_matches_the_path_or_its_dotted_end(pattern: str) -> None:
    assert matches(PATH, pattern)


@pytest.mark.parametrize("pattern", ["o_k", "attn1.to_k", "down_blocks", "blocks.*", "TO_K", "to_k.*", "attn2"])
def test_pattern_matches_nothing_else(pattern: str) -> None:
    assert not matches(PATH, pattern)


def test_later_patterns_win_and_none_means_the_default() -> None:
    model = tiny_unet()
    table = {"attention": (None, None), "attn2.*": (8, None), "mid_block.*attn2.to_k": (None, 2.0)}
    found = resolve(model, table, rank=4)
    assert found[PATH.replace("attentions.1", "attentions.0")] == Target(8, 8.0)
    assert found["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] == Target(4, 2.0)
    assert {target for path, target in found.items() if "attn1" in path} == {Target(4, 4.0)}
    assert list(found) == list(resolve(model, ["attention"], rank=1))


def test_targets_come_in_the_order_of_the_model() -> None:
    model = tiny_unet()
    assert list(resolve(model, ["to_v", "to_q"], rank=1)) == list(resolve(model, ["to_[qv]"], rank=1))


def test_default_alpha_holds_where_a_pattern_gives_none() -> None:
    table = {"to_q": (None, None), "to_k": (2, None)}
    found = resolve(tiny_unet(), table, rank=4, alpha=1.0)
    assert set(found.values()) == {Target(4, 1.0), Target(2, 1.0)}


def test_only_linear_layers_and_convolutions_are_chosen() -> None:
    model = tiny_unet()
    kinds = {type(model.get_submodule(path)) for path in resolve(model, ["*"], rank=1)}
    assert kinds == {nn.Linear, nn.Conv2d}
    assert len(resolve(model, ["*"], 1)) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in model.modules())


def test_names_hold_inside_an_injected_model() -> None:
    model = tiny_unet()
    before = {pattern: resolve(model, [pattern], rank=2) for pattern in ("*", "extended", "down_blocks.*")}
    inject(model, before["extended"])
    assert {pattern: resolve(model, [pattern], rank=2) for pattern in before} == before
    remove(model)
    with pytest.raises(MismatchError):
        resolve(model, ["base"], rank=2)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("attn3.to_q", "did you mean attn2.to_q or attn1.to_q or "),
        ("atention", "did you mean attention"),
        ("zzz", ", such as "),
        ("text-encoder", ", such as "),
        ("attentions", "did you mean attention"),
    ],
)
def test_pattern_without_a_match_is_an_error_with_a_hint(pattern: str, hint: str) -> None:
    with pytest.raises(MismatchError) as caught:
        resolve(tiny_unet(), ["attention", pattern], rank=4)
    message = str(caught.value)
    assert f'no layer matches "{pattern}"' in message
    assert hint in message
    assert "\n" not in message


def test_model_without_layers_says_so() -> None:
    with pytest.raises(MismatchError, match="this model has none"):
        resolve(nn.Linear(3, 3), ["attention"], rank=4)


def test_every_pattern_of_the_presets_matches_something() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1))
    for name, patterns in PRESETS.items():
        model = text_encoder if name == "text-encoder" else tiny_unet()
        for pattern in patterns:
            assert resolve(model, [pattern], rank=1)
