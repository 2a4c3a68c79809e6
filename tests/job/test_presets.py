"""A preset of memory fills in what the job leaves open, and nothing else."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loractl.job import read_job
from loractl.plugins import load_plugins
from loractl.sections import cards, presets
from loractl.sections.conflicts import of_memory
from loractl.sections.memory import PictureMemorySection
from loractl.sections.presets import PRESETS, size, with_picture_preset, with_preset
from loractl.sections.training import TrainMemorySection

PICTURES = {
    "infer": 'sample.prompts = ["a dog"]',
    "grid": 'grid.x.seed = "1"\nsample.prompt = "a dog"',
    "eval": 'prompts = ["a dog"]\nencoders = ["some/clip"]',
}


def model(folder: Path, pipeline: str) -> str:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    return str(folder)


def resolved(said: dict[str, str], source: str) -> TrainMemorySection:
    memory = TrainMemorySection.model_validate(said)
    return with_preset(memory, memory.preset, source)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_its_table_says(preset: str, tmp_path: Path) -> None:
    source = model(tmp_path, "StableDiffusionXLPipeline")
    memory = resolved({"preset": preset}, source)
    settings = PRESETS[preset]["3B"]
    assert {key: getattr(memory, key) for key in settings} == settings
    others = TrainMemorySection(preset=preset).model_dump(exclude=set(settings))
    assert memory.model_dump(exclude=set(settings)) == others


def test_keys_beside_it_win_and_none_changes_nothing(tmp_path: Path) -> None:
    source = model(tmp_path, "StableDiffusionXLPipeline")
    said = {"preset": "8gb", "quantize": "none", "precision": "fp32"}
    memory = resolved(said, source)
    assert (memory.quantize, memory.precision, memory.gradient_checkpointing) == ("none", "fp32", True)
    plain = TrainMemorySection(phases=True)
    assert with_preset(plain, None, source) is plain


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("StableDiffusionXLPipeline", ("device", "device", "device")),
        ("StableDiffusion3Pipeline", ("cpu", "cpu", "device")),
        ("FluxPipeline", ("cpu", "device", "device")),
        ("QwenImagePipeline", ("cpu", "cpu", "device")),
        ("SomebodysPipeline", ("cpu", "cpu", "device")),
    ],
)
def test_text_encoders_too_large_for_the_gpu_read_elsewhere(
    pipeline: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    source = model(tmp_path, pipeline)
    found = tuple(resolved({"preset": preset}, source).text_encoders for preset in ("8gb", "12gb", "24gb"))
    assert found == expected
    alone = TrainMemorySection.model_validate({"preset": "8gb", "phases": False})
    assert with_preset(alone, "8gb", source).text_encoders == "device", "they need networks that take turns"


@pytest.mark.parametrize(
    ("card", "preset"),
    [(None, None), (8, "8gb"), (11, "8gb"), (11.99, "12gb"), (16, "12gb"), (22.5, "24gb"), (48, "24gb"), (79.6, None)],
)
def test_auto_goes_by_the_card(
    card: float | None, preset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(tmp_path, "FluxPipeline")
    monkeypatch.setattr(presets, "gigabytes", lambda: card)
    memory = TrainMemorySection(preset="auto")
    expected = with_preset(memory, preset, source)
    assert resolved({"preset": "auto"}, source) == expected
    assert resolved({"preset": "auto", "device": "cpu"}, source).quantize == "none"


@pytest.mark.parametrize(
    ("script", "visible", "expected"),
    [
        ("echo 11000; echo 8192", None, 8.0),
        ('test "$3 $4" = "-i 1" && echo 24576', "1", 24.0),
        ('test "$1" = --query-gpu=memory.total && echo 8192', None, 8.0),
        ("echo No devices were found; exit 6", None, None),
        ("echo [N/A]", None, None),
    ],
)
def test_the_driver_is_asked(
    script: str, visible: str | None, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards.gigabytes.__wrapped__() == expected


def test_what_it_became_is_read_again_as_the_same(tmp_path: Path) -> None:
    memory = resolved({"preset": "12gb"}, model(tmp_path, "FluxPipeline"))
    again = TrainMemorySection.model_validate_json(memory.model_dump_json())
    assert with_preset(again, again.preset, "lab") == memory


@pytest.mark.parametrize(
    ("pipeline", "layers", "expected"),
    [
        ("StableDiffusionPipeline", None, "1B"),
        ("StableDiffusion3Pipeline", 24, "3B"),
        ("StableDiffusion3Pipeline", 38, "6B"),
        ("StableDiffusion3Pipeline", "many", "3B"),
        ("Flux2KleinPipeline", 5, "6B"),
        ("Flux2KleinPipeline", 8, "12B"),
        ("SanaPipeline", 20, "3B"),
        ("SanaPipeline", 60, "6B"),
        ("FluxPipeline", 19, "12B"),
        ("QwenImagePipeline", 60, "20B"),
        ("SomebodysPipeline", None, "20B"),
    ],
)
def test_the_size_is_told_by_the_folder(pipeline: str, layers: object, expected: str, tmp_path: Path) -> None:
    source = model(tmp_path, pipeline)
    if layers is not None:
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer/config.json").write_text(json.dumps({"num_layers": layers}), encoding="utf-8")
    assert size(source) == expected


def test_what_has_no_folder_here_is_taken_for_one_of_the_larger() -> None:
    assert (size("lab"), size("some/name"), size("some/file.safetensors")) == ("1B", "12B", "12B")
    assert size("some/file.ckpt") == "3B", "younger models come as safetensors"
    for preset in ("12gb", "24gb"):  # it may be a UNet, which has nothing to be offloaded
        assert resolved({"preset": preset}, "some/name").offload == "none"


def test_the_larger_models_of_a_family_read_elsewhere(tmp_path: Path) -> None:
    """Flux.2 Klein of 9B has a text encoder of 8B, which that of 4B does not."""
    source = model(tmp_path, "Flux2KleinPipeline")
    assert resolved({"preset": "12gb"}, source).text_encoders == "device"
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text('{"num_layers": 8}', encoding="utf-8")
    assert resolved({"preset": "12gb"}, source).text_encoders == "cpu"


def test_every_preset_knows_every_size_and_only_keys_there_are() -> None:
    sizes = {frozenset(rows) for rows in PRESETS.values()}
    assert len(sizes) == 1
    for rows in PRESETS.values():
        for settings in rows.values():
            assert TrainMemorySection.model_validate(settings)
            # what is cast or brought for a layer is kept for its backward, unless it is recomputed
            assert settings.get("quantize") != "fp8" or settings["gradient_checkpointing"]


def test_one_file_is_offloaded_where_a_folder_would_be_in_nf4(tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    save_file({"model.diffusion_model.guidance_in.in_layer.bias": torch.zeros(1)}, file)
    memory = resolved({"preset": "12gb"}, str(file))
    assert (memory.quantize, memory.offload) == ("none", "blocks")
    assert not of_memory(memory.quantize, memory.device, str(file))
    assert resolved({"preset": "24gb"}, str(file)).quantize == "fp8"


@pytest.mark.parametrize(
    ("pipeline", "preset", "expected"),
    [
        ("StableDiffusionPipeline", "8gb", ("none", "none", "device")),
        ("StableDiffusionXLPipeline", "8gb", ("fp8", "none", "cpu")),
        ("StableDiffusionXLPipeline", "12gb", ("none", "none", "device")),
        ("FluxPipeline", "8gb", ("none", "blocks", "cpu")),
        ("FluxPipeline", "12gb", ("nf4", "none", "cpu")),
        ("FluxPipeline", "24gb", ("fp8", "none", "cpu")),
        ("StableDiffusion3Pipeline", "24gb", ("none", "none", "device")),
    ],
)
def test_pictures_have_presets_of_their_own(
    pipeline: str, preset: str, expected: tuple[str, str, str], tmp_path: Path
) -> None:
    source = model(tmp_path, pipeline)
    job = tmp_path / "job.toml"
    for method, text in PICTURES.items():
        job.write_text(f'method = "{method}"\nmodel = "{source}"\nmemory.preset = "{preset}"\n{text}', encoding="utf-8")
        memory = read_job(job, load_plugins().methods).memory  # type: ignore[attr-defined]  # all three have it
        assert (memory.quantize, memory.offload, memory.text_encoders) == expected
        assert memory.precision == "bf16"
        again = PictureMemorySection.model_validate_json(memory.model_dump_json())
        assert with_picture_preset(again, preset, "lab") == memory, "read again it is the same"


def test_what_a_job_says_of_its_pictures_wins(tmp_path: Path) -> None:
    source = model(tmp_path, "FluxPipeline")

    def found(**said: str) -> PictureMemorySection:
        return with_picture_preset(PictureMemorySection.model_validate(said), "8gb", source)

    assert (found(quantize="nf4").quantize, found(quantize="nf4").offload) == ("nf4", "none")
    assert (found(quantize="none").quantize, found(quantize="none").offload) == ("none", "blocks")
    assert found(text_encoders="device").text_encoders == "device"
    assert found(precision="fp32").precision == "fp32"
    plain = PictureMemorySection()
    assert with_picture_preset(plain, None, source) is plain
