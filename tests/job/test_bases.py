"""What a job's model is, told before torch is there: by a folder, by a file's header, or by a hub id known by heart."""

import json
from pathlib import Path
from typing import Any

import pytest

from loractl.bases import BASES, configuration, configurations, pipeline_of
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.sections.presets import PRESETS, size
from tests.job.writing import write
from tests.methods.lab_job import JOBS

KEYS = {
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ("StableDiffusion3Pipeline", "3B"),
    "model.diffusion_model.joint_blocks.37.x_block.attn.qkv.weight": ("StableDiffusion3Pipeline", "6B"),
    "double_blocks.0.img_attn.qkv.weight": ("FluxPipeline", "12B"),
    "conditioner.embedders.1.model.ln_final.weight": ("StableDiffusionXLPipeline", "3B"),
    "something.else": ("", "12B"),
}


def headed(path: Path, header: object) -> str:
    """A file that ends after its header, which is all that is read."""
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    return str(path)


def job(folder: Path, *settings: str) -> Any:
    file = write(folder / "job.toml", 'method = "dreambooth"\nsubject.prompt = "a sks dog"\neval.encoders = []\n')
    over = [override(each) for each in (f"data.path={JOBS / 'data/subject'}", *settings)]
    return read_job(file, load_plugins().methods, over)


@pytest.mark.parametrize("key", KEYS)
def test_a_file_is_told_by_its_header(key: str, tmp_path: Path) -> None:
    source = headed(tmp_path / "model.safetensors", {"__metadata__": {}, key: {}})
    assert (pipeline_of(source), size(source)) == KEYS[key]


def test_jobs_of_a_file_have_what_suits_its_family(tmp_path: Path) -> None:
    source = headed(tmp_path / "model.safetensors", {"joint_blocks.0.x_block.attn.qkv.weight": {}})
    spec = job(tmp_path, f"model={source}", "memory.preset=8gb")
    assert spec.train.lr == 4e-4
    assert {key: getattr(spec.memory, key) for key in PRESETS["8gb"]["3B"]} == PRESETS["8gb"]["3B"]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04\x14\0\0\0\x08\x08", b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{!"]
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_what_has_no_header_is_left_to_the_loading(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert pipeline_of(str(file)) == ""


@pytest.mark.parametrize("base", BASES)
def test_the_models_themselves_are_known_by_their_ids(base: str) -> None:
    known = json.loads((configurations(base) / "model_index.json").read_text(encoding="utf-8"))
    assert pipeline_of(BASES[base].repo) == known["_class_name"]


def test_a_hub_id_has_the_rate_of_its_family(tmp_path: Path) -> None:
    ids = ("stabilityai/stable-diffusion-3.5-medium", "Qwen/Qwen-Image", "somebody/stable-diffusion-3.5-medium")
    assert [job(tmp_path, f"model={each}").train.lr for each in ids] == [4e-4, 2e-4, 1e-4]
    assert size("stabilityai/stable-diffusion-3.5-large") == "6B"


def test_a_folder_by_the_name_of_an_id_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / BASES["sd3"].repo
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert pipeline_of(BASES["sd3"].repo) == "FluxPipeline"
    assert configuration(BASES["sd3"].repo, "transformer/config.json") == {}
