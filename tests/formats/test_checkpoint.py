"""Every module of a model on disk is found under its path, whatever the layout, and files are rewritten exactly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.errors import FormatError, InputError, NumericsError
from loractl.formats.checkpoint import as_safetensors, model_weights
from loractl.formats.rewrite import BLOCK, rewrite
from loractl.formats.safefile import read_header, read_tensors, write_tensors
from loractl.inject.targets import injectable
from loractl.tensors.lowrank import LowRank
from tests.formats.models import NATIVE, OPEN_CLIP, open_clip, small_unet, write_folder, write_single


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


# --- models ----------------------------------------------------------------------------------------------------------


def test_both_layouts_have_the_same_weights(tmp_path: Path) -> None:
    unet = small_unet()
    single = model_weights(write_single(tmp_path / "model.safetensors", unet))
    folder = model_weights(write_folder(tmp_path / "model", unet))
    assert {f"unet.{path}" for path in injectable(unet)} == folder.keys() <= single.keys()
    assert {path.partition(".")[0] for path in single.keys() - folder.keys()} == {"text_encoder"}
    for path, weight in folder.items():
        wanted = unet.get_parameter(f"{path.removeprefix('unet.')}.weight")
        assert weight.shape == wanted.shape
        assert torch.equal(weight.read(), wanted) and torch.equal(single[path].read(), wanted)


def test_fused_rows_are_read_alone(tmp_path: Path) -> None:
    weights = model_weights(write_single(tmp_path / "model.safetensors", small_unet()))
    fused = open_clip()[f"{OPEN_CLIP}.1.attn.in_proj_weight"]
    for name, wanted in zip("qkv", fused.chunk(3), strict=True):
        assert torch.equal(weights[f"text_encoder.encoder.layers.1.self_attn.{name}_proj"].read(), wanted)


def test_shards_are_one_model(tmp_path: Path) -> None:
    whole = write_folder(tmp_path / "whole", small_unet())
    small_unet().save_pretrained(tmp_path / "sharded/unet", max_shard_size="100KB")
    (tmp_path / "sharded/model_index.json").write_text("{}")
    assert len(list((tmp_path / "sharded/unet").glob("*.safetensors"))) > 1
    one, many = model_weights(whole), model_weights(tmp_path / "sharded")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[path].read(), many[path].read()) for path in one)


def test_a_variant_is_read_only_where_nothing_else_is(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_unet())
    plain = folder / "unet/diffusion_pytorch_model.safetensors"
    half = folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    tensors, _ = read_tensors(plain)
    write_tensors(half, {key: tensor.half() for key, tensor in tensors.items()}, {})
    assert {weight.header.path for weight in model_weights(folder).values()} == {plain}
    plain.unlink()
    assert {weight.header.path for weight in model_weights(folder).values()} == {half}


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 1}', '{"weight_map": {"a": "../other.safetensors"}}'])
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet/model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match=r"index\.json"):
        model_weights(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model_index\.json"):
        model_weights(tmp_path)
    write_tensors(tmp_path / "other.safetensors", {"a.weight": torch.ones(2, 2)}, {})
    with pytest.raises(InputError, match="no weights of a UNet"):
        model_weights(tmp_path / "other.safetensors")


def test_a_transposed_projection_is_read_and_changed_transposed(tmp_path: Path) -> None:
    key = "conditioner.embedders.1.model.text_projection"
    write_tensors(tmp_path / "m.safetensors", {key: torch.arange(6.0).view(2, 3)}, {})
    weight = model_weights(tmp_path / "m.safetensors")["text_encoder_2.text_projection"]
    assert weight.shape == (3, 2) and weight.read().tolist() == [[0, 3], [1, 4], [2, 5]]
    low = LowRank(torch.rand(1, 2), torch.rand(3, 1), 1.0)
    ((first, part),) = weight.places(low)
    assert first == 0 and isinstance(part, LowRank)
    assert torch.equal(part.delta(), low.delta().T)


def test_eight_bits_with_factors_are_refused(tmp_path: Path) -> None:
    tensors = {f"{NATIVE}double_blocks.0.img_mlp.0.{part}": torch.ones(4, 4) for part in ("weight", "scale_weight")}
    write_tensors(tmp_path / "m.safetensors", tensors, {})
    with pytest.raises(FormatError, match="8 bits with factors"):
        model_weights(tmp_path / "m.safetensors")


# --- pickles ---------------------------------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_ckpt_is_read_only_when_allowed(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    torch.save({"state_dict": tensors, "global_step": 7}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="allow_pickle"), as_safetensors(tmp_path / "model.ckpt", False, tmp_path):
        pass
    with as_safetensors(tmp_path / "model.ckpt", True, tmp_path) as copy:
        found = read_tensors(copy)[0]
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_hostile_ckpt_runs_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Hostile(tmp_path / "mark")}}, tmp_path / "model.ckpt")
    with pytest.raises(FormatError, match=r"model\.ckpt"), as_safetensors(tmp_path / "model.ckpt", True, tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


# --- rewriting -------------------------------------------------------------------------------------------------------


def plus_one(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    for rows in blocks:
        assert rows.dtype in (torch.float32, torch.float64)
        yield rows + 1


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), st.integers(0, 3), min_size=1
    ),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.randoms(use_true_random=False),
)
def test_what_is_not_changed_keeps_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int], dtype: torch.dtype, random: Any
) -> None:
    folder = tmp_path_factory.mktemp("rewrite")
    tensors = {name: torch.arange(3 * size, dtype=dtype).view(size, 3) for name, size in sizes.items()}
    tensors.pop("__metadata__", None)
    chosen = {name for name in tensors if random.random() < 0.5}
    write_tensors(folder / "in", tensors, {"a": "b"})
    rewrite(read_header(folder / "in"), folder / "out", dict.fromkeys(chosen, plus_one), {"c": "d"}, silent)
    before, after = read_header(folder / "in"), read_header(folder / "out")
    assert [*before.entries.items()] == [*after.entries.items()] and after.metadata == {"c": "d"}
    found, _ = read_tensors(folder / "out")
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor + 1 if name in chosen else tensor)


def test_a_tensor_larger_than_a_block_is_changed_whole(tmp_path: Path) -> None:
    tensor = torch.arange(3.0 * BLOCK).view(-1, 1024)[:-1]
    write_tensors(tmp_path / "in", {"a": tensor}, {})
    rewrite(read_header(tmp_path / "in"), tmp_path / "out", {"a": plus_one}, {}, silent)
    assert torch.equal(read_tensors(tmp_path / "out")[0]["a"], tensor + 1)


def test_eight_bits_are_changed_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "in", {"a": torch.tensor([[1.0, 2.0]]).to(torch.float8_e4m3fn)}, {})
    rewrite(read_header(tmp_path / "in"), tmp_path / "out", {"a": plus_one}, {}, silent)
    assert read_tensors(tmp_path / "out")[0]["a"].float().tolist() == [[2.0, 3.0]]


def test_a_number_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "in", {"a": torch.full((2, 2), 60_000, dtype=torch.float16)}, {})
    double = {"a": lambda blocks: (2 * rows for rows in blocks)}
    with pytest.raises(NumericsError, match="a is not finite"):
        rewrite(read_header(tmp_path / "in"), tmp_path / "out", double, {}, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_header_reads_as_json(tmp_path: Path) -> None:
    """The library reads it too, and the data are aligned."""
    write_tensors(tmp_path / "in", {"ü": torch.ones(3, 3)}, {})
    rewrite(read_header(tmp_path / "in"), tmp_path / "out", {}, {"k": "v" * 5}, silent)
    raw = (tmp_path / "out").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0 and json.loads(raw[8 : 8 + length])["ü"]["shape"] == [3, 3]
