"""What is saved comes back in every format, with mixed ranks and alphas, and with what the adapter says of itself."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file

from loractl.errors import FormatError
from loractl.formats import detect, inspect, load_adapter, save_adapter
from loractl.formats.safefile import data_hash, read_header, read_tensors
from loractl.tensors.adapter import Adapter, content_hash
from tests.formats.adapters import FLAT, QUERY, adapters, distance, example, replace_tensors

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}

WRITTEN = ("diffusers", "kohya")  # the formats for adapters of any model of Stable Diffusion

formats = pytest.mark.parametrize("form", WRITTEN)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


@formats
@dtypes
@settings(deadline=None)  # files take their time
@given(adapter=adapters())
def test_reading_undoes_writing(
    tmp_path_factory: pytest.TempPathFactory, adapter: Adapter, form: str, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{form}.safetensors"
    save_adapter(path, adapter, form, dtype=dtype, name="test", overwrite=True)
    back = load_adapter(path)
    assert distance(back, adapter) < TOLERANCE[dtype]
    assert all(back.modules[module].rank == low.rank for module, low in adapter.modules.items())
    assert all(low.down.dtype == low.up.dtype == dtype for low in back.modules.values())


@formats
@settings(deadline=None)  # files take their time
@given(adapter=adapters())
def test_converting_there_and_back_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, adapter: Adapter, form: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "converted.safetensors"
    converted = adapter
    for other in (form, *(name for name in WRITTEN if name != form), form):
        save_adapter(path, converted, other, dtype=torch.float32, name="test", overwrite=True)
        converted = load_adapter(path)
    assert distance(converted, adapter) < 1e-6


@formats
def test_factors_and_alpha_come_back_unchanged_when_alpha_is_one(tmp_path: Path, form: str) -> None:
    adapter = example(alphas=(3.0,))
    save_adapter(tmp_path / "a", adapter, form, dtype=torch.float32, name="test")
    back = load_adapter(tmp_path / "a").modules
    for path, low in adapter.modules.items():
        assert torch.equal(back[path].down, low.down)
        assert torch.equal(back[path].up, low.up)
        assert back[path].alpha == low.alpha


@formats
def test_the_bytes_do_not_depend_on_the_order_of_things(tmp_path: Path, form: str) -> None:
    adapter = example(metadata={"loractl.seed": "1", "a": "b"})
    turned = Adapter(dict(reversed(adapter.modules.items())), dict(reversed(adapter.metadata.items())))
    save_adapter(tmp_path / "a", adapter, form, name="test")
    save_adapter(tmp_path / "b", turned, form, name="test")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@formats
def test_saving_again_gives_the_same_file(tmp_path: Path, form: str) -> None:
    save_adapter(tmp_path / "a", example(), form, name="test")
    save_adapter(tmp_path / "b", load_adapter(tmp_path / "a"), form, name="test")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@formats
def test_the_format_is_known_from_the_keys(tmp_path: Path, form: str) -> None:
    save_adapter(tmp_path / "a", example(), form, name="test")
    assert detect(read_header(tmp_path / "a")) == form


def test_metadata_goes_along_but_for_what_described_the_old_file(tmp_path: Path) -> None:
    stale = {
        "sshs_model_hash": "00",
        "ss_network_dim": "999",
        "modelspec.hash_sha256": "0x00",
        "lora_adapter_metadata": "{}",
    }
    kept = {"loractl.job": "{}", "ss_base_model_version": "sd_v1", "ss_tag_frequency": "{}", "modelspec.author": "me"}
    save_adapter(tmp_path / "kohya", example(metadata=stale | kept), "kohya", name="title")
    metadata = load_adapter(tmp_path / "kohya").metadata
    assert kept.items() <= metadata.items()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "title"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "Dynamic"
    assert metadata["sshs_model_hash"] == data_hash(tmp_path / "kohya")
    assert not {"modelspec.hash_sha256", "lora_adapter_metadata"} & metadata.keys()

    save_adapter(tmp_path / "diffusers", load_adapter(tmp_path / "kohya"), "diffusers", name="title")
    metadata = load_adapter(tmp_path / "diffusers").metadata
    assert kept.items() <= metadata.items()
    assert not {"ss_network_dim", "ss_output_name", "modelspec.title", "sshs_model_hash"} & metadata.keys()


def test_no_architecture_is_claimed_that_is_not_known(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", example(), "kohya", name="test")
    assert "modelspec.architecture" not in read_header(tmp_path / "a").metadata


def test_kohya_files_have_one_alpha_for_each_component(tmp_path: Path) -> None:
    adapter = example(alphas=(2.0, 3.0, 2.0, 0.0))
    save_adapter(tmp_path / "a", adapter, "kohya", dtype=torch.float32, name="test")
    tensors, _ = read_tensors(tmp_path / "a")
    assert {float(tensors[key]) for key in tensors if key.startswith("lora_unet") and key.endswith(".alpha")} == {2.0}
    for path, low in load_adapter(tmp_path / "a").modules.items():
        torch.testing.assert_close(low.delta(), adapter.modules[path].delta())


def test_alpha_is_the_rank_where_a_file_has_none(tmp_path: Path) -> None:
    down, up = torch.ones(4, 8), torch.ones(8, 4)
    key = QUERY.removeprefix("unet.")
    save_file({f"unet.{key}.lora_A.weight": down, f"unet.{key}.lora_B.weight": up}, tmp_path / "diffusers")
    flat = f"lora_unet_{key.replace('.', '_')}"
    save_file({f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}, tmp_path / "kohya")
    assert load_adapter(tmp_path / "diffusers").modules[QUERY].alpha == 4
    assert load_adapter(tmp_path / "kohya").modules[QUERY].alpha == 4


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"lora_alpha": 2}, 2),
        ({"r": 4, "use_rslora": True, "lora_alpha": 2}, 4),
        ({"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 3}}, 3),
        ({"lora_alpha": 2, "alpha_pattern": {"ttn1.to_q": 3}}, 2),
        ({"lora_alpha": 2, "alpha_pattern": {"^attn1.to_q": 3}}, 2),
        ({"lora_alpha": 2, "alpha_pattern": {f"^{QUERY.removeprefix('unet.')}": 3, "to_q": 5}}, 3),
        ({}, 4),
    ],
)
def test_alpha_is_what_peft_would_use(tmp_path: Path, config: dict[str, object], alpha: float) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(4, 8), f"{QUERY}.lora_B.weight": torch.ones(8, 4)}
    text = json.dumps({f"unet.{key}": value for key, value in config.items()})
    save_file(tensors, tmp_path / "a", {"lora_adapter_metadata": text})
    assert load_adapter(tmp_path / "a").modules[QUERY].alpha == alpha


def test_alpha_may_be_of_any_type_and_shape_with_one_number(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", example(), "kohya", dtype=torch.float32, name="test")
    replace_tensors(tmp_path / "a", **{f"{FLAT}.alpha": torch.tensor([2], dtype=torch.int64)})
    assert load_adapter(tmp_path / "a").modules[QUERY].alpha == 2


def test_names_of_an_unusual_model_are_read_beside_it(tmp_path: Path) -> None:
    path = "unet.my_blocks.0.odd_name"
    save_adapter(tmp_path / "a", Adapter({path: example().modules[QUERY]}), "kohya", name="test")
    with pytest.raises(FormatError, match="lora_unet_my_blocks_0_odd_name"):
        load_adapter(tmp_path / "a")
    assert load_adapter(tmp_path / "a", ["vae.encoder", path]).modules.keys() == {path}


@formats
def test_inspect_accounts_for_the_whole_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a"
    adapter = example(alphas=(2.0,), metadata={"loractl.seed": "1"})
    save_adapter(path, adapter, form, name="test")
    found = inspect(path)
    assert (found["kind"], found["format"], found["unknown"]) == ("lora", form, [])
    assert found["held"] == {"lora": len(adapter.modules)}
    assert found["components"]["text_encoder"] == {"modules": 2, "ranks": [2, 3], "alphas": [2.0]}
    assert found["components"]["unet"] == {"modules": 7, "ranks": [1, 2, 3], "alphas": [2.0]}
    assert found["parameters"] == adapter.parameters
    assert "float16" in found["dtypes"]
    assert found["bytes"] == path.stat().st_size
    assert found["content_hash"] == content_hash(read_tensors(path)[0])
    assert found["data_hash"] == data_hash(path)
    assert found["metadata"]["loractl.seed"] == "1"
    replace_tensors(path, other=torch.ones(1))
    assert inspect(path)["unknown"] == ["other"]
