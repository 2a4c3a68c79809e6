"""A converted file has the same updates in the other program's form, and says where it comes from."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from loractl_convert import start
from loractl_convert.command import convert
from loractl_convert.spec import ConvertSpec, FileSection

from loractl.errors import FormatError, InputError, JobError, MismatchError
from loractl.events import Event, Note
from loractl.formats import FormatName, inspect, load_adapter, save_adapter
from loractl.formats.bases import BASES
from loractl.formats.names import canonical
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import are_equal, distance, example, random_update
from tests.methods.lab_job import JOBS, run_job
from tests.tiny import tiny

DATA = Path(__file__).parents[1] / "data/adapters"


def converted(file: Path, out: Path, to: str, **options: object) -> Path:
    return start(convert(file, to, out=out, **options), lambda _: None).files[to]  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["kohya", "cloneofsimo"])
def test_the_real_file_keeps_updates_and_tokens(tmp_path: Path, to: str) -> None:
    path = converted(DATA / "lora_disney.safetensors", tmp_path / "disney.safetensors", to)
    before, after = load_adapter(DATA / "lora_disney.safetensors"), load_adapter(path)
    assert inspect(path)["format"] == to
    assert are_equal(after, before)
    assert all(torch.equal(after.tokens[token], before.tokens[token]) for token in before.tokens)
    (origin,) = json.loads(after.metadata["loractl.parents"])
    assert origin["content_hash"] == inspect(DATA / "lora_disney.safetensors")["content_hash"]
    assert json.loads(after.metadata["loractl.job"])["adapter"] == "lora_disney.safetensors"


def test_for_diffusers_each_token_has_its_own_file(tmp_path: Path) -> None:
    outcome = start(
        convert(DATA / "lora_disney.safetensors", "diffusers", out=tmp_path / "d.safetensors"), lambda _: None
    )
    assert {path.name for path in outcome.files.values()} == {f"d{end}.safetensors" for end in ("", ".s1", ".s2")}
    assert inspect(outcome.files["diffusers"])["tokens"] == {}
    assert inspect(outcome.files["d.s1"])["tokens"] == {"text_encoder.<s1>": [1, 768]}


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("q_proj", "fc1", "fc2")])
def test_diffusers_loads_a_text_encoder_without_out_proj(tmp_path: Path, names: tuple[str, ...]) -> None:
    """It takes the converted file whole. Kohya's own it refuses for want of one, or leaves attention out unasked."""
    pipeline = tiny("sd_v1")
    generator = torch.Generator().manual_seed(0)
    modules = {
        canonical(f"text_encoder.{path}"): random_update(tuple(layer.weight.shape), 2, 3.0, generator)
        for path, layer in pipeline.text_encoder.named_modules()
        if path.endswith(names)
    }
    assert modules
    save_adapter(tmp_path / "kohya.safetensors", Adapter(modules), "kohya", dtype=torch.float32, name="k")
    if "fc1" not in names:
        with pytest.raises(ValueError, match="infer state dict type"):
            pipeline.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    file = converted(tmp_path / "kohya.safetensors", tmp_path / "adapter.safetensors", "diffusers")
    before = {name: tensor.clone() for name, tensor in pipeline.text_encoder.state_dict().items()}
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = pipeline.text_encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if canonical(f"text_encoder.{name}").removesuffix(".weight") in modules}
    for name in changed:
        low = modules[canonical(f"text_encoder.{name}").removesuffix(".weight")]
        torch.testing.assert_close(after[name] - before[name], low.delta(), atol=1e-5, rtol=1e-4)


def test_a_pickle_is_read_only_when_it_may_be(tmp_path: Path) -> None:
    file, out = DATA / "bad-artist.pt", tmp_path / "bad-artist.safetensors"
    with pytest.raises(FormatError, match="could run code"):
        converted(file, out, "a1111")
    found = inspect(converted(file, out, "a1111", allow_pickle=True))
    assert found["tokens"] == {"text_encoder.bad-artist": [2, 768]}


def test_the_base_can_be_said_where_nothing_tells_it(tmp_path: Path) -> None:
    low = random_update((32, 32), 2, 1.0, torch.Generator().manual_seed(0))
    file = tmp_path / "a.safetensors"
    save_adapter(file, Adapter({"transformer.transformer_blocks.0.attn.to_q": low}), "diffusers", name="a")
    with pytest.raises(MismatchError, match="depend on the base model"):
        converted(file, tmp_path / "b.safetensors", "kohya")
    keys = {"flux1": "lora_unet_double_blocks_0_img_attn_qkv", "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv"}
    for base, key in keys.items():
        path = converted(file, tmp_path / f"{base}.safetensors", "kohya", base=base)
        assert f"{key}.alpha" in path.read_bytes().decode("latin-1")
        assert distance(load_adapter(path), load_adapter(file)) < 1e-6


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", example(), "kohya", name="a")
    (tmp_path / "b").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        converted(tmp_path / "a", tmp_path / "b", "diffusers")
    assert (tmp_path / "b").read_text() == "mine"
    converted(tmp_path / "a", tmp_path / "b", "diffusers", overwrite=True)
    assert inspect(tmp_path / "b")["format"] == "diffusers"


def test_what_a_person_should_know_is_said(tmp_path: Path) -> None:
    adapter = Adapter(
        example((2.0,)).modules, {}, magnitudes={path: torch.ones(8, 1) for path in [next(iter(example().modules))]}
    )
    save_adapter(tmp_path / "a", adapter, "kohya", name="a")
    events: list[Event] = []
    start(convert(tmp_path / "a", "kohya", out=tmp_path / "b"), events.append)
    assert ["DoRA" in event.text for event in events if isinstance(event, Note)] == [True]


def test_biases_and_norms_alone_are_written_or_refused(tmp_path: Path) -> None:
    norm = "unet.down_blocks.0.attentions.0.norm"
    vectors = {f"{norm}.weight": torch.randn(8), f"{norm}.bias": torch.randn(8)}
    save_adapter(tmp_path / "a", Adapter({}, vectors=vectors), "kohya", dtype=torch.float32, name="a")
    after = load_adapter(converted(tmp_path / "a", tmp_path / "b", "kohya"), whole=True).vectors
    assert after.keys() == vectors.keys()
    assert all(torch.equal(after[path], vectors[path]) for path in vectors), "in the precision that they had"
    for to in ("diffusers", "cloneofsimo"):
        with pytest.raises(MismatchError, match="no place for differences of biases and norms"):
            converted(tmp_path / "a", tmp_path / to, to)
        assert not (tmp_path / to).exists()


def test_the_spec_knows_the_formats_and_bases_that_there_are(tmp_path: Path) -> None:
    assert get_args(FileSection.model_fields["format"].annotation) == get_args(FormatName)
    said = get_args(get_args(ConvertSpec.model_fields["base"].annotation)[0])
    assert said == tuple(BASES)
    with pytest.raises(JobError, match="--to"):
        convert(DATA / "lora_disney.safetensors", "zip", out=tmp_path / "a")


def test_the_job_that_comes_with_loractl_runs(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "convert.toml", tmp_path / "converted.safetensors")
    assert (
        distance(load_adapter(outcome.files["diffusers"]), load_adapter(JOBS / "data/adapters/one.safetensors")) < 1e-3
    )
