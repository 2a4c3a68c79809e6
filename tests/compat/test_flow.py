"""What the documentation of cloneofsimo/lora tells people to do, one after the other, on the built-in model."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loractl.compat import (
    collapse_lora,
    extract_lora_ups_down,
    inject_trainable_lora,
    inject_trainable_lora_extended,
    inspect_lora,
    load_safeloras,
    monkeypatch_add_lora,
    monkeypatch_or_replace_lora_extended,
    monkeypatch_remove_lora,
    patch_pipe,
    save_safeloras_with_embeds,
    tune_lora_scale,
)
from loractl.families.pipeline import load_model
from loractl.families.sd import StableDiffusion
from loractl.inject.inject import hash_of
from loractl.tensors.lowrank import LowRank
from tests.compat.networks import CLIP, assert_near, delta, deltas, disturb, wrappers

UNET = {"CrossAttention", "Attention", "GEGLU"}


@pytest.fixture
def lab() -> StableDiffusion:
    return load_model("lab", torch.device("cpu"), torch.float32)


def conditioning(lab: StableDiffusion) -> Tensor:
    return lab.encode_text(["a picture of a red critter", "a house <s1>"])


def predict(lab: StableDiffusion) -> Tensor:
    """For a fixed input, through text encoder and denoiser."""
    generator = torch.Generator().manual_seed(1)
    channels, size = lab.pipeline.unet.config.in_channels, lab.pipeline.unet.config.sample_size
    noisy = torch.randn(2, channels, size, size, generator=generator)
    return lab.predict(noisy, torch.tensor([30, 700]), conditioning(lab))


@torch.no_grad()
def denoise(lab: StableDiffusion) -> Tensor:
    return predict(lab)


def train(lab: StableDiffusion, groups: list[list[nn.Parameter]], steps: int = 4) -> list[float]:
    """The losses of a few steps towards a fixed target."""
    optimizer = torch.optim.Adam(itertools.chain(*groups), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = (predict(lab) - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_from_injection_to_a_collapsed_pipeline(lab: StableDiffusion, tmp_path: Path) -> None:
    unet, encoder = lab.pipeline.unet, lab.pipeline.text_encoder
    file = tmp_path / "lora.safetensors"
    untouched, hashes = denoise(lab), (hash_of(unet), hash_of(encoder))

    groups, names = inject_trainable_lora(unet)
    more, _ = inject_trainable_lora(encoder, target_replace_module=CLIP, r=8)
    assert (len(groups), len(names), len(more)) == (2 * 63, 63, 2 * 12)
    assert names[:5] == ["to_q", "to_k", "to_v", "0", "to_q"]
    assert torch.equal(denoise(lab), untouched)

    losses = train(lab, groups + more)
    assert losses[-1] < losses[0]
    assert (hash_of(unet), hash_of(encoder)) == hashes
    assert all(float(up.weight.detach().abs().sum()) > 0 for up, _ in extract_lora_ups_down(unet))
    assert min(itertools.chain(*inspect_lora(encoder).values())) > 0
    trained = denoise(lab)
    learnt = deltas(unet)

    embeds = {"<s1>": torch.randn(encoder.config.hidden_size)}
    save_safeloras_with_embeds({"unet": (unet, UNET), "text_encoder": (encoder, CLIP)}, embeds, str(file))
    monkeypatch_remove_lora(unet)
    monkeypatch_remove_lora(encoder)
    assert torch.equal(denoise(lab), untouched)

    assert patch_pipe(lab.pipeline, str(file), patch_ti=False).keys() == {"<s1>"}
    assert (denoise(lab) - trained).norm() < 5e-3 * (trained - untouched).norm(), "fp16 in the file"
    tune_lora_scale(unet, 0.0)
    tune_lora_scale(encoder, 0.0)
    assert torch.equal(denoise(lab), untouched)

    tune_lora_scale(unet, 0.5)
    other = [0.1 * torch.randn_like(tensor) for tensor in load_safeloras(file)["unet"][0]]
    monkeypatch_add_lora(unet, other, alpha=0.7, beta=-0.4)
    halves = zip(other[::2], other[1::2], strict=True)
    added = {path: LowRank(down, up, 4.0).delta() for path, (up, down) in zip(learnt, halves, strict=True)}
    total = {path: 0.5 * (0.7 * added[path].double() - 0.4 * learnt[path]) for path in learnt}
    assert_near(deltas(unet), total, 1e-3)
    mixed = denoise(lab)

    collapse_lora(unet)
    assert torch.allclose(denoise(lab), mixed, atol=1e-5)
    monkeypatch_remove_lora(unet)
    assert not wrappers(unet)
    assert torch.allclose(denoise(lab), mixed, atol=1e-5)


def test_a_token_of_the_file_is_read_in_prompts(lab: StableDiffusion, tmp_path: Path) -> None:
    vector = torch.randn(lab.pipeline.text_encoder.config.hidden_size)
    save_safeloras_with_embeds(embeds={"<s1>": vector}, outpath=tmp_path / "a.safetensors")
    before = conditioning(lab)
    patch_pipe(lab.pipeline, tmp_path / "a.safetensors")
    after = conditioning(lab)
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1], atol=1e-2)
    ids = lab.tokenizer("<s1>", add_special_tokens=False, return_tensors="pt").input_ids
    table = lab.pipeline.text_encoder.get_input_embeddings()
    assert torch.equal(table(ids)[0], vector[None])


def test_collapse_adds_what_scale_and_selector_make_of_it(lab: StableDiffusion) -> None:
    unet = lab.pipeline.unet
    bases = {path: layer.weight.double() for path, layer in named(unet).items()}
    inject_trainable_lora_extended(unet, r=2)
    disturb(unet)
    tune_lora_scale(unet, -0.8)
    for layer in wrappers(unet).values():
        layer.set_selector_from_diag(torch.tensor([0.25, 2.0]))
    right = {path: 0.5 * each for path, each in deltas(unet).items()}
    assert {layer.weight.ndim for layer in wrappers(unet).values()} == {2, 4}
    collapse_lora(unet, alpha=0.5)
    assert all(float(delta(layer).abs().max()) == 0 for layer in wrappers(unet).values()), "it counts once"
    monkeypatch_remove_lora(unet)
    assert_near({path: named(unet)[path].weight.double() - bases[path] for path in right}, right)


def test_a_replaced_lora_leaves_nothing_of_the_first(lab: StableDiffusion) -> None:
    unet = lab.pipeline.unet
    inject_trainable_lora_extended(unet, r=3)
    disturb(unet, 1)
    tune_lora_scale(unet, 0.1)
    classes = {"ResnetBlock2D", *UNET}
    tensors = [torch.randn_like(f.weight) for pair in extract_lora_ups_down(unet, classes) for f in pair]
    expected = [tensor.clone() for tensor in tensors]
    monkeypatch_or_replace_lora_extended(unet, tensors, classes, r=3)
    assert len(tensors) == len(expected) == 2 * len(wrappers(unet)), "the list is not emptied"
    now = [factor.weight for pair in extract_lora_ups_down(unet, classes) for factor in pair]
    assert all(torch.equal(found, right) for found, right in zip(now, expected, strict=True))
    assert {layer.scale for layer in wrappers(unet).values()} == {1.0}


def named(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {path: each for path, each in unet.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
