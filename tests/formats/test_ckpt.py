"""A .ckpt is what torch.save would have written, as far as any reader can tell, and never whole in memory."""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.errors import InputError, MismatchError, NumericsError
from loractl.formats.checkpoint import as_safetensors
from loractl.formats.ckpt import rewrite_ckpt
from loractl.formats.rewrite import BLOCK
from loractl.formats.safefile import read_header, read_tensors, write_tensors
from tests.formats.models import small_unet, write_single

# AUTOMATIC1111/stable-diffusion-webui, modules/safe.py: the files it lets into a zip, and what it lets a pickle name.
A1111_FILES = re.compile(r"([^/]+)/((data/\d+)|version|(data\.pkl))")
A1111_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage" for kind in ("Float", "Half", "Int", "Long", "Double", "Byte", "BFloat16")
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


def plus_one(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    for rows in blocks:
        yield rows + 1


def written(folder: Path, tensors: dict[str, Tensor], changed: tuple[str, ...] = (), **metadata: str) -> Path:
    write_tensors(folder / "in", tensors, {}, overwrite=True)
    rewrite_ckpt(
        read_header(folder / "in"), folder / "out.ckpt", dict.fromkeys(changed, plus_one), metadata, silent, True
    )
    return folder / "out.ckpt"


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), max_size=5),
    dtype=st.sampled_from(DTYPES),
    mapped=st.booleans(),
)
def test_torch_reads_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], dtype: torch.dtype, mapped: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"ü.{n}": torch.randint(0, 2, shape, generator=generator).to(dtype) for n, shape in enumerate(shapes)}
    path = written(tmp_path_factory.mktemp("ckpt"), tensors, a="b")
    found = torch.load(path, weights_only=True, mmap=mapped)
    assert found.keys() == {"state_dict", "metadata"} and found["metadata"] == {"a": "b"}
    assert found["state_dict"].keys() == tensors.keys()
    for key, tensor in found["state_dict"].items():
        assert tensor.dtype == dtype and tensor.is_contiguous() and torch.equal(tensor, tensors[key])


def test_only_what_is_named_is_changed(tmp_path: Path) -> None:
    """Of a tensor larger than a block, all of it."""
    tensors = {"a": torch.arange(1.5 * BLOCK).view(-1, 1024), "b": torch.ones(3, dtype=torch.float16)}
    found = torch.load(written(tmp_path, tensors, ("a",)), weights_only=True)["state_dict"]
    assert torch.equal(found["a"], tensors["a"] + 1) and torch.equal(found["b"], tensors["b"])


def test_the_zip_is_sound_aligned_and_always_the_same(tmp_path: Path) -> None:
    tensors = {f"{n}": torch.rand(n) for n in range(1, 12)}
    path = written(tmp_path, tensors)
    before = path.read_bytes()
    assert written(tmp_path, tensors).read_bytes() == before
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every checksum is right
    reader = torch._C.PyTorchFileReader(str(path))
    assert {reader.get_record_offset(name) % 64 for name in reader.get_all_records()} == {0}


def test_a1111_lets_it_through(tmp_path: Path) -> None:
    with zipfile.ZipFile(
        written(tmp_path, {f"{dtype}": torch.ones(1, dtype=dtype) for dtype in DTYPES[:-1]})
    ) as archive:
        assert all(A1111_FILES.fullmatch(name) for name in archive.namelist())
        named = {arg for code, arg, _ in pickletools.genops(archive.read("model/data.pkl")) if code.name == "GLOBAL"}
    assert {f"torch {kind}Storage" for kind in ("Half", "Float")} < named <= A1111_NAMES


@torch.no_grad()
def test_diffusers_loads_it_as_a_single_file(tmp_path: Path) -> None:
    unet = small_unet()
    unet.save_config(tmp_path / "unet")
    single = write_single(tmp_path / "model.safetensors", unet)
    rewrite_ckpt(read_header(single), tmp_path / "model.ckpt", {}, {}, silent)
    settings: dict[str, Any] = {"config": str(tmp_path), "subfolder": "unet", "local_files_only": True}
    found = UNet2DConditionModel.from_single_file(str(tmp_path / "model.ckpt"), **settings).state_dict()
    assert found.keys() == unet.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in unet.state_dict().items())


def test_we_read_it_too(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    with as_safetensors(written(tmp_path, tensors), True, tmp_path) as copy:
        found = read_tensors(copy)[0]
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_eight_bits_have_no_place_in_it(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"a is in torch\.float8_e4m3fn.*write out\.safetensors"):
        written(tmp_path, {"a": torch.ones(2).to(torch.float8_e4m3fn)})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_there_stays_when_it_fails(tmp_path: Path) -> None:
    write_tensors(tmp_path / "in", {"a": torch.ones(2), "b": torch.full((2,), 60_000, dtype=torch.float16)}, {})
    (tmp_path / "out.ckpt").write_text("precious")
    header, double = read_header(tmp_path / "in"), {"b": lambda blocks: (2 * rows for rows in blocks)}
    with pytest.raises(InputError, match="exists already"):
        rewrite_ckpt(header, tmp_path / "out.ckpt", {}, {}, silent)
    with pytest.raises(NumericsError, match="b is not finite"):
        rewrite_ckpt(header, tmp_path / "out.ckpt", double, {}, silent, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out.ckpt"}
    assert (tmp_path / "out.ckpt").read_text() == "precious"
