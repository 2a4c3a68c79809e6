"""Loading in phases: a network is in memory while it is needed, and everything comes out as with all of them there."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loractl.errors import InputError, MismatchError
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.families.precision import Keeping
from loractl.formats import load_adapter
from loractl.inject.inject import adapter_parameters, inject
from loractl.inject.targets import resolve
from loractl.inject.tokens import add_tokens, token_parameters
from loractl.runs import objective
from loractl.runs.studio import Studio
from loractl.sample.denoise import Request, render
from loractl.sample.phases import render_in_phases, said_of
from loractl.train import loss
from tests.families.conftest import PROMPT, SHORT, Folder, load
from tests.families.tiny import PIPELINES
from tests.methods.lab_job import JOBS, run_job
from tests.tiny import tiny_sd

CPU = torch.device("cpu")
META = torch.device("meta")  # in a GPU's place; what is there has no numbers
two_families = pytest.mark.parametrize("name", ["sd", "flux"])


def phased(folder: Path, **more: Any) -> Family:
    return load_model(str(folder), CPU, torch.float32, phases=True, **more)


def roles(model: Family, names: frozenset[str]) -> set[str]:
    """What the networks are for."""
    return {"text" if name in model.text_encoder_names else name for name in names}


@two_families
def test_a_network_is_loaded_when_it_is_needed_and_freed_when_another_comes(folder: Folder, name: str) -> None:
    model, plain = phased(folder(name)), load(folder(name))
    assert not model.loaded and plain.loaded == plain.networks.keys()
    for each in model.networks:
        model.bring(each)
        assert model.loaded == {each}
        wanted, found = plain.networks[each].state_dict(), model.networks[each].state_dict()
        assert wanted.keys() == found.keys() and all(torch.equal(wanted[key], found[key]) for key in wanted)
        assert not any(parameter.requires_grad for parameter in model.networks[each].parameters())
        alive = weakref.ref(model.networks[each])
        model.bring()
        assert alive() is None and not model.loaded


@two_families
def test_what_a_configuration_tells_is_told_without_loading(folder: Folder, name: str) -> None:
    model, plain = phased(folder(name)), load(folder(name))
    for tell in (
        lambda each: each.module_paths(),
        lambda each: resolve(each.denoiser, each.patterns("extended"), 4),
        lambda each: {key: value.shape for key, value in each.denoiser.named_parameters()},
        lambda each: (each.resolution, each.multiple, each.is_inpainting, each.text_length),
    ):
        assert tell(model) == tell(plain)
    assert not model.loaded


def test_what_learns_stays(folder: Folder) -> None:
    model = phased(folder("sd"))
    model.bring("unet", "text_encoder")
    inject(model.denoiser, resolve(model.denoiser, ["attention"], 2))
    add_tokens(model.tokenizer, model.components["text_encoder"], {"<rex>": torch.ones(1, 32)})
    factors, rows = adapter_parameters(model.denoiser), token_parameters(model.components["text_encoder"])
    model.bring("vae")
    assert model.loaded == {"unet", "text_encoder", "vae"}
    model.bring("unet", "text_encoder")
    assert model.loaded == {"unet", "text_encoder"}
    again, known = adapter_parameters(model.denoiser), token_parameters(model.components["text_encoder"])
    assert all(again[key] is factor for key, factor in factors.items()) and known["<rex>"] is rows["<rex>"]


def test_what_is_kept_stays(folder: Folder) -> None:
    model = phased(folder("sd"))
    model.bring("unet")
    unet = model.denoiser
    model.keep()
    model.bring("vae")
    model.bring("text_encoder")
    assert model.loaded == {"unet", "text_encoder"} and model.denoiser is unet


@pytest.mark.parametrize("name", PIPELINES)
def test_texts_are_read_on_the_cpu_and_told_on_the_device(folder: Folder, name: str) -> None:
    model = load_model(str(folder(name)), META, torch.float32, phases=True, texts_on_cpu=True)
    model.bring(*model.text_encoder_names)
    assert {each.device for part in model.text_encoder_names for each in model.networks[part].parameters()} == {CPU}
    read, told = tensors(model.encode_text([PROMPT])), tensors(model.told([PROMPT]))
    expected = tensors(load(folder(name)).encode_text([PROMPT]))
    assert read.keys() == told.keys() and all(torch.equal(read[key], expected[key]) for key in read)
    assert {told[key].device for key in told.keys() - {"mask"}} == {META}
    request = [Request(PROMPT, 0, 2, 3.0, 64)]
    plain = phased(folder(name))
    plain.bring(*plain.text_encoder_names)
    assert shapes(said_of(model, request, {}), META) == shapes(said_of(plain, request, {}), CPU)
    model.bring(model.denoiser_name)
    assert {each.device for each in model.denoiser.parameters()} == {META}


def tensors(said: Any) -> dict[str, torch.Tensor]:
    return {"": said} if isinstance(said, torch.Tensor) else dict(said)


def shapes(said: Any, device: torch.device) -> list[torch.Size]:
    """Of all tensors, which must be on the device."""
    if isinstance(said, torch.Tensor):
        assert said.device == device
        return [said.shape]
    parts = said if isinstance(said, tuple | list) else ()
    return [shape for each in parts for shape in shapes(each, device)]


def test_a_network_that_comes_again_is_kept_as_the_job_says(folder: Folder) -> None:
    model = phased(folder("sd"), keeping=Keeping(quantize="fp8"))
    for _ in range(2):
        model.bring("unet")
        assert torch.float8_e4m3fn in {parameter.dtype for parameter in model.denoiser.parameters()}
        model.bring("vae")


def test_what_can_not_be_is_said_before_anything_is_loaded(folder: Folder) -> None:
    with pytest.raises(InputError, match=r'memory\.attention = "fast"'):
        phased(folder("flux"), keeping=Keeping(attention="fast"))
    with pytest.raises(MismatchError, match="trains transformers alone"):
        phased(folder("sd"), keeping=Keeping(offload="blocks"), trains=True)


@two_families
def test_training_in_phases(folder: Folder, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first step at most one kind of network is in memory; and the adapter is the same to the bit."""
    trace: list[set[str]] = []
    bring, errors = Family.bring, loss.denoising_errors

    def watched(self: Family, *names: str) -> None:
        bring(self, *names)
        trace.append(roles(self, self.loaded))

    def begun(*arguments: Any) -> Any:
        trace.append({"a step"})
        return errors(*arguments)

    monkeypatch.setattr(Family, "bring", watched)
    monkeypatch.setattr(objective, "denoising_errors", begun)
    shared = (*SHORT, "prior.source=prediction", "sample.every=2", "output.format=['diffusers']")
    made = {}
    for kind in ("true", "false"):
        settings = (*shared, f"memory.phases={kind}", f"model={folder(name)}", "adapter.targets=['attention']")
        outcome, _ = run_job(JOBS / "subject.toml", tmp_path / kind, *settings)
        made[kind] = load_adapter(outcome.files["diffusers"])
        if kind == "true":
            before = trace[: trace.index({"a step"})]
            assert {"vae"} in before and {"text"} in before and all(len(there) == 1 for there in before)
    wanted, found = made["false"].modules, made["true"].modules
    assert wanted.keys() == found.keys()
    for path, low in wanted.items():
        assert torch.equal(low.down, found[path].down) and torch.equal(low.up, found[path].up)
    sheets = [Image.open(tmp_path / kind / "samples/step-000002.png") for kind in ("true", "false")]
    assert sheets[0].tobytes() == sheets[1].tobytes()


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_in_phases(folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the whole model, of several batches, with text encoders, denoiser and autoencoder one at a time."""
    model, plain = phased(folder(name)), load(folder(name))
    negative = "" if name == "flux2" else "blurred"
    wanted = [Request(prompt, 7, 2, 3.0, (96, 64), negative) for prompt in ("a dog", "a dog on the beach", "a dog")]
    there: list[set[str]] = []
    bring = Family.bring

    def watched(self: Family, *names: str) -> None:
        bring(self, *names)
        there.append(roles(self, self.guests))

    monkeypatch.setattr(Family, "bring", watched)
    steps: list[tuple[int, int]] = []
    found = render_in_phases(model, wanted, 1, lambda done, of: steps.append((done, of)))
    assert there == [{"text"}, {model.denoiser_name}, {"vae"}]
    assert steps == [(done, 6) for done in range(1, 7)]
    limit = 1 if name == "flux2" else 0  # the spread of its latents comes out of another root
    for own, theirs in zip(found, render(plain.paint, wanted, 1), strict=True):
        assert np.abs(np.asarray(own, int) - np.asarray(theirs, int)).max() <= limit
    assert found[0].tobytes() == found[2].tobytes() != found[1].tobytes()


def test_a_model_for_inpainting_has_its_autoencoder_while_it_denoises(tmp_path: Path) -> None:
    tiny_sd(in_channels=9).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionInpaintPipeline"'))
    request = Request("a dog", 3, 2, 3.0, 64)
    pictures = [
        Studio(model, lambda _: None).make([request], "samples")[0].tobytes()
        for model in (phased(tmp_path), load(tmp_path))
    ]
    assert pictures[0] == pictures[1]


def test_each_text_is_read_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = phased(folder("sd")), []
    encode = type(model.pipeline).encode_prompt

    def watched(self: Any, prompt: list[str], *more: Any, **named: Any) -> Any:
        read.append(prompt)
        return encode(self, prompt, *more, **named)

    monkeypatch.setattr(type(model.pipeline), "encode_prompt", watched)
    render_in_phases(model, [Request("a dog", seed, 1, 3.0, 64) for seed in range(4)], 2)
    assert read == [["a dog", "a dog"]]
