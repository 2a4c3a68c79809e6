"""What `show` says of sizes is what the matrices say."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loractl.errors import FormatError, InputError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.report import blocks, describe, prospects
from loractl.formats.safefile import read_tensors
from tests.formats.adapters import example

DISNEY = Path(__file__).parents[1] / "data/adapters/lora_disney.safetensors"


def test_the_real_file_in_numbers() -> None:
    said = describe(DISNEY, with_modules=True)
    assert (said["kind"], said["format"], said["base"]) == ("lora", "cloneofsimo", "sd_v1")
    modules = load_adapter(DISNEY).modules
    dense = {path: float(low.delta().double().norm()) for path, low in modules.items()}
    assert {path: each["norm"] for path, each in said["modules"].items()} == pytest.approx(dense, rel=1e-5)
    assert said["norm"] == pytest.approx(math.hypot(*dense.values()), rel=1e-5)
    ways = [f"unet.{way}_blocks.{n}" for way, numbers in (("down", (0, 1, 2)), ("up", (1, 2, 3))) for n in numbers]
    assert list(said["blocks"]) == ["text_encoder", *ways[:3], "unet.mid_block", *ways[3:]]
    inside = [size for path, size in dense.items() if path.startswith("unet.up_blocks.2.")]
    assert said["blocks"]["unet.up_blocks.2"] == pytest.approx(math.hypot(*inside), rel=1e-5)


def test_blocks_stand_in_the_order_of_their_numbers() -> None:
    paths = [f"transformer.single_transformer_blocks.{n}.attn.to_q" for n in (10, 9, 2)]
    assert list(blocks(dict.fromkeys([*paths, "transformer.proj_out"], 1.0))) == [
        "transformer.proj_out",
        *(f"transformer.single_transformer_blocks.{n}" for n in (2, 9, 10)),
    ]


def test_what_is_not_understood_is_listed_beside_what_is(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", example(), "kohya", name="a")
    tensors, _ = read_tensors(tmp_path / "a")
    save_file({**tensors, "lora_unet_nowhere.lora_up.weight": tensors[min(tensors)].clone()}, tmp_path / "b")
    said = describe(tmp_path / "b")
    assert said["unknown"] == ["lora_unet_nowhere.lora_up.weight"]
    assert said["norm"] == pytest.approx(describe(tmp_path / "a")["norm"])


def test_a_file_of_no_known_format_is_listed_key_by_key(tmp_path: Path) -> None:
    save_file({"decoder.weight": torch.ones(2, 2), "decoder.step": torch.tensor(3)}, tmp_path / "a")
    said = describe(tmp_path / "a")
    assert (said["kind"], said["format"], said["components"]) == ("unknown", "unknown", {})
    assert said["unknown"] == ["decoder.step", "decoder.weight"]
    with pytest.raises(FormatError, match="no adapter format"):
        load_adapter(tmp_path / "a")


def test_a_pickle_is_described_when_it_may_be_read() -> None:
    file = DISNEY.with_name("bad-artist.pt")
    with pytest.raises(FormatError, match="could run code"):
        describe(file)
    assert describe(file, allow_pickle=True)["tokens"] == {"text_encoder.bad-artist": [2, 768]}
    (group,) = prospects(file, "a1111", allow_pickle=True)["groups"]
    assert group["keys"] == ["string_to_param.*"]


def test_other_programs_are_not_guessed_at() -> None:
    with pytest.raises(InputError, match="choose one of comfyui, forge, a1111, diffusers"):
        prospects(DISNEY, "invoke")
