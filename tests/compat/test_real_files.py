"""The two files of cloneofsimo/lora on a pipeline of SD 1.5's shape, whose weights are zeros that take no memory."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from loractl.compat import (
    LoRAManager,
    extract_lora_ups_down,
    load_safeloras,
    load_safeloras_both,
    load_safeloras_embeds,
    monkeypatch_add_lora,
    monkeypatch_remove_lora,
    patch_pipe,
    save_safeloras,
    save_safeloras_with_embeds,
)
from loractl.formats import load_adapter
from loractl.formats.safefile import read_tensors
from loractl.inject.tokens import remove_tokens
from tests.compat.networks import CLIP, delta, wrappers
from tests.inject.test_sd15 import text_encoder, unet
from tests.tensors.updates import delta as delta_of
from tests.tiny import tiny_tokenizer

DATA = Path(__file__).parents[1] / "data" / "adapters"
DISNEY, ANALOG = (DATA / f"{name}.safetensors" for name in ("lora_disney", "analog_svd_rank4"))
UNET = {"CrossAttention", "Attention", "GEGLU"}


def weightless(model: nn.Module) -> nn.Module:
    """A network of the meta device with zeros, one number of memory for each of its parameters."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros(1).expand(parameter.shape), requires_grad=False))
    return model.eval()


@pytest.fixture(scope="module")
def sd15() -> SimpleNamespace:
    return SimpleNamespace(unet=weightless(unet()), text_encoder=weightless(text_encoder()), tokenizer=tiny_tokenizer())


@pytest.fixture
def pipe(sd15: SimpleNamespace) -> SimpleNamespace:
    monkeypatch_remove_lora(sd15.unet)
    monkeypatch_remove_lora(sd15.text_encoder)
    remove_tokens(sd15.tokenizer, sd15.text_encoder)
    return sd15


def layers(pipe: SimpleNamespace) -> dict[str, nn.Module]:
    """Component and path → wrapper."""
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{name}.{path}": layer for name, part in parts.items() for path, layer in wrappers(part).items()}


@pytest.mark.parametrize(("file", "tokens"), [(DISNEY, ["<s1>", "<s2>"]), (ANALOG, [])], ids=["disney", "analog"])
def test_every_pair_reaches_its_module(pipe: SimpleNamespace, file: Path, tokens: list[str]) -> None:
    embeds = patch_pipe(pipe, str(file))
    right, found = load_adapter(file), layers(pipe)
    assert len(found) == 144 + 48 and found.keys() == right.modules.keys()
    for path, low in right.modules.items():
        layer = found[path]
        assert torch.equal(layer.lora_up.weight, low.up.float()), path
        assert torch.equal(layer.lora_down.weight, low.down.float()), path
    assert sorted(embeds) == tokens
    for token in tokens:
        ids = pipe.tokenizer(token, add_special_tokens=False, return_tensors="pt").input_ids
        assert torch.equal(pipe.text_encoder.get_input_embeddings()(ids)[0, 0], embeds[token].float())


def test_what_the_loaders_return() -> None:
    loras, embeds = load_safeloras_both(DISNEY)
    tensors, _ = read_tensors(DISNEY)
    assert {name: (len(weights), set(ranks)) for name, (weights, ranks, _) in loras.items()} == {
        "unet": (288, {1}),
        "text_encoder": (96, {1}),
    }
    assert set(loras["unet"][2]) == UNET and loras["text_encoder"][2] == ["CLIPAttention"]
    assert torch.equal(loras["unet"][0][2 * 143 + 1], tensors["unet:143:down"]), "numbers are not sorted as text"
    assert all(isinstance(weight, nn.Parameter) for weight in loras["unet"][0])
    assert {token: tuple(vector.shape) for token, vector in embeds.items()} == {"<s1>": (768,), "<s2>": (768,)}
    assert load_safeloras_embeds(ANALOG) == {} and load_safeloras(ANALOG)["unet"][1] == [4] * 144


def test_the_second_is_added_exactly(pipe: SimpleNamespace) -> None:
    """The original's `lora_add` of these two files is off by 107 % (docs/coming-from-lora.md)."""
    patch_pipe(pipe, DISNEY)
    for name, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        weights, _, classes = load_safeloras(ANALOG)[name]
        monkeypatch_add_lora(network, weights, classes, alpha=0.5, beta=0.5)
    one, two = load_adapter(DISNEY).modules, load_adapter(ANALOG).modules
    for path, layer in list(layers(pipe).items())[::8]:
        right = 0.5 * delta_of(one[path]) + 0.5 * delta_of(two[path])
        assert (delta(layer) - right).norm() <= 1e-5 * right.norm(), path


def test_the_manager_weighs_both(pipe: SimpleNamespace) -> None:
    manager = LoRAManager([str(DISNEY), str(ANALOG)], pipe)
    manager.tune([0.7, -0.2])
    one, two = load_adapter(DISNEY).modules, load_adapter(ANALOG).modules
    found = layers(pipe)
    assert found.keys() == one.keys() == two.keys()
    for path, layer in list(found.items())[::8]:
        right = 0.7 * delta_of(one[path]) - 0.2 * delta_of(two[path])
        assert (delta(layer) - right).norm() <= 1e-5 * right.norm(), path
    assert manager.prompt("a lion in style of <1>, <2>") == "a lion in style of <s0-0><s0-1>, "


def test_what_is_saved_of_it_is_the_file_again(pipe: SimpleNamespace, tmp_path: Path) -> None:
    embeds = patch_pipe(pipe, DISNEY)
    modelmap = {"unet": (pipe.unet, UNET), "text_encoder": (pipe.text_encoder, CLIP)}
    save_safeloras_with_embeds(modelmap, embeds, tmp_path / "a.safetensors")
    back, right = load_adapter(tmp_path / "a.safetensors"), load_adapter(DISNEY)
    assert back.modules.keys() == right.modules.keys() and back.tokens.keys() == right.tokens.keys()
    for path, low in right.modules.items():
        assert torch.equal(back.modules[path].up, low.up.half()), path
        assert torch.equal(back.modules[path].down, low.down.half()), path


def test_three_pickles_are_one_lora(pipe: SimpleNamespace, tmp_path: Path) -> None:
    (unet_list, *_), (text_list, *_) = (load_safeloras(DISNEY)[name] for name in ("unet", "text_encoder"))
    torch.save([each.data for each in unet_list], tmp_path / "x.pt")
    torch.save([each.data for each in text_list], tmp_path / "x.text_encoder.pt")
    torch.save(load_safeloras_embeds(DISNEY), tmp_path / "x.ti.pt")
    right = load_adapter(DISNEY).modules
    assert patch_pipe(pipe, str(tmp_path / "x.ti.pt")).keys() == {"<s1>", "<s2>"}
    found = layers(pipe)
    assert found.keys() == right.keys()
    assert all(torch.equal(found[path].lora_up.weight, low.up.float()) for path, low in right.items())


def test_parts_may_be_left_out(pipe: SimpleNamespace, tmp_path: Path) -> None:
    patch_pipe(pipe, DISNEY, patch_text=False, patch_ti=False)
    assert {path.partition(".")[0] for path in layers(pipe)} == {"unet"}
    assert "<s1>" not in pipe.tokenizer.get_vocab()
    save_safeloras({"unet": (pipe.unet, UNET)}, tmp_path / "a.safetensors")
    assert load_safeloras(tmp_path / "a.safetensors").keys() == {"unet"}
    assert len(extract_lora_ups_down(pipe.unet)) == 144
