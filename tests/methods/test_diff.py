"""A comparison says what the matrices say, and finds an adapter in a model; and no file tool loads more than torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import loractl_bake
import pytest
import torch
from loractl_bake.command import bake
from loractl_diff import start
from loractl_diff.command import diff
from loractl_diff.spec import DiffSpec
from torch import Tensor

from loractl.errors import JobError, NumericsError
from loractl.events import Event, Facts, Note
from loractl.formats import save_adapter
from loractl.formats.checkpoint import model_parameters, model_weights
from loractl.formats.safefile import read_tensors, write_tensors
from loractl.tensors.adapter import Adapter
from loractl.tensors.algebra import scaled
from loractl.tensors.lowrank import LowRank
from tests.formats.models import small_unet, unet_adapter, write_single
from tests.methods.lab_job import JOBS
from tests.tensors.updates import delta, random_update, turned

QUERY, KEY = (f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{x}" for x in "qk")


def compare(tmp_path: Path, a: dict[str, LowRank], b: dict[str, LowRank]) -> tuple[dict[str, float], dict[str, Any]]:
    """The numbers of the outcome, and the table."""
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for file, modules in zip(files, (a, b), strict=True):
        save_adapter(file, Adapter(modules), "diffusers", dtype=torch.float32, name=file.stem, overwrite=True)
    events: list[Event] = []
    outcome = start(diff(*files), events.append)
    assert outcome.files == {}
    (facts,) = (event for event in events if isinstance(event, Facts))
    return dict(outcome.numbers), dict(facts.values)


def test_the_numbers_are_those_of_the_matrices(tmp_path: Path) -> None:
    a = {QUERY: random_update((8, 6), 2, 1.0, 0), KEY: random_update((8, 6), 3, 4.0, 1)}
    b = {QUERY: random_update((8, 6), 4, 2.0, 2)}
    numbers, table = compare(tmp_path, a, b)
    one, two = (torch.cat([delta(each.get(path), (8, 6)) for path in (QUERY, KEY)]) for each in (a, b))
    assert numbers["cosine"] == pytest.approx(float((one * two).sum() / (one.norm() * two.norm())))
    assert numbers["relative_error"] == pytest.approx(float((one - two).norm() / one.norm()))
    assert (numbers["modules"], numbers["only_in_a"], numbers["only_in_b"]) == (2, 1, 0)
    assert table.keys() == {QUERY, KEY} and table[KEY] == "0.000000  1"
    cosine, error = map(float, table[QUERY].split())
    assert cosine == pytest.approx(float(torch.cosine_similarity(one[:8].flatten(), two[:8].flatten(), 0)), abs=1e-6)
    assert error == pytest.approx(float((one[:8] - two[:8]).norm() / one[:8].norm()), rel=1e-2)


def test_the_same_update_by_other_factors_is_the_same(tmp_path: Path) -> None:
    low = random_update((8, 6), 3, 2.0, 0)
    numbers, _ = compare(tmp_path, {QUERY: low}, {QUERY: low})
    assert (numbers["cosine"], numbers["relative_error"]) == (pytest.approx(1), 0)
    numbers, _ = compare(tmp_path, {QUERY: low}, {QUERY: turned(low)})
    assert numbers["cosine"] == pytest.approx(1) and numbers["relative_error"] < 1e-6
    numbers, _ = compare(tmp_path, {QUERY: low}, {QUERY: scaled(low, -2.0)})
    assert numbers["cosine"] == pytest.approx(-1) and numbers["relative_error"] == pytest.approx(3)


def test_zeros_have_no_angle_and_no_error_among_themselves(tmp_path: Path) -> None:
    low = random_update((8, 6), 3, 2.0, 0)
    nothing = LowRank(low.down, torch.zeros_like(low.up), 2.0)
    numbers, _ = compare(tmp_path, {QUERY: nothing}, {QUERY: nothing})
    assert (numbers["cosine"], numbers["relative_error"]) == (1, 0)
    numbers, _ = compare(tmp_path, {QUERY: nothing}, {QUERY: low})
    assert (numbers["cosine"], numbers["relative_error"]) == (0, float("inf"))


def test_biases_count_like_weights(tmp_path: Path) -> None:
    """As one more row of numbers each; one that is only in a file is zero in the other."""
    low, zero = random_update((8, 6), 3, 2.0, 0), LowRank(torch.zeros(1, 6), torch.zeros(8, 1), 1.0)
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    biases: tuple[dict[str, Tensor], ...] = ({f"{QUERY}.bias": torch.tensor([3.0, 4.0])}, {})
    for file, vectors, own in zip(files, biases, (low, zero), strict=True):
        save_adapter(file, Adapter({QUERY: own}, vectors=vectors), "kohya", dtype=torch.float32, name=file.stem)
    numbers = start(diff(*files), lambda _: None).numbers
    assert (numbers["relative_error"], numbers["cosine"]) == (pytest.approx(1), 0)
    assert (numbers["modules"], numbers["only_in_a"]) == (2, 1)
    assert start(diff(files[0], files[0]), lambda _: None).numbers["largest_error"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_baked_model_contains_its_adapter_and_a_tampered_one_does_not(tmp_path: Path, dtype: torch.dtype) -> None:
    unet = small_unet()
    base, baked = write_single(tmp_path / "base.safetensors", unet, dtype), tmp_path / "baked.safetensors"
    modules = dict(list(unet_adapter(unet).modules.items())[:6])
    vectors = {"unet.conv_norm_out.weight": torch.rand(8), "unet.conv_out.bias": torch.rand(4)}
    file = tmp_path / "a.safetensors"
    save_adapter(file, Adapter(modules, vectors=vectors), "kohya", name="a")
    loractl_bake.start(bake(base, [file], weight=[-0.5], out=baked), lambda _: None)
    assert contains(file, baked, base) == ({"largest_error": 0, "modules": 8, "changed_elsewhere": 0}, [])
    assert contains(file, base, base)[0]["largest_error"] == pytest.approx(1, abs=0.01)
    tensors = {key: tensor.clone() for key, tensor in read_tensors(baked)[0].items()}
    inside, outside = (model_weights(base)[path] for path in (next(iter(modules)), "unet.conv_out"))
    for weight in (inside, outside):
        tensors[weight.key][0, 0] += 1
    write_tensors(baked, tensors, {}, overwrite=True)
    numbers, warnings = contains(file, baked, base)
    assert numbers["largest_error"] > 0.1 and numbers["changed_elsewhere"] == 1
    assert warnings == ["1 other modules are changed too; the first is unet.conv_out"]


@pytest.mark.parametrize("name", ["unet.mid_block.resnets.0.conv1.weight", "unet.conv_out.weight", "unet.conv_in.bias"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_damaged_model_proves_nothing(tmp_path: Path, name: str, number: float) -> None:
    """Wherever the number is that is not finite: in a module that the adapter changes, or in one that it does not."""
    unet, file = small_unet(), tmp_path / "a.safetensors"
    base, baked = write_single(tmp_path / "base.safetensors", unet), tmp_path / "baked.safetensors"
    save_adapter(file, unet_adapter(unet), "kohya", name="a")
    loractl_bake.start(bake(base, [file], weight=[-0.5], out=baked), lambda _: None)
    assert contains(file, baked, base)[0]["largest_error"] == 0
    tensors = {key: tensor.clone() for key, tensor in read_tensors(baked)[0].items()}
    tensors[model_parameters(base)[name].key].view(-1)[0] = number
    write_tensors(baked, tensors, {}, overwrite=True)
    with pytest.raises(NumericsError, match=f"{name.removesuffix('.weight')} is not finite in .*baked"):
        contains(file, baked, base)


def contains(file: Path, merged: Path, base: Path) -> tuple[dict[str, float], list[str]]:
    """The numbers, and the warnings."""
    events: list[Event] = []
    outcome = start(diff(file, merged=merged, base=base, weight=-0.5), events.append)
    return dict(outcome.numbers), [event.text for event in events if isinstance(event, Note)]


def test_two_sides_must_be_given(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_adapter(file, Adapter({QUERY: random_update((8, 6), 2, 1.0, 0)}), "diffusers", name="a")
    for sides in ({}, {"b": file, "merged": file, "base": file}, {"merged": file}, {"b": file, "base": file}):
        with pytest.raises(JobError, match="a second adapter b, or else merged and base"):
            diff(file, **sides)


def test_nothing_is_written_so_no_place_is_taken(tmp_path: Path) -> None:
    file = str(JOBS / "data/adapters/one.safetensors")
    with pytest.raises(ValueError, match="writes no file"):
        DiffSpec.model_validate_json(json.dumps({"a": file, "b": file, "output": {"path": str(tmp_path / "out")}}))


def test_file_tools_load_torch_and_safetensors_at_most(tmp_path: Path) -> None:
    one, two = (JOBS / "data" / "adapters" / f"{name}.safetensors" for name in ("one", "two"))
    code = f"""
import sys
from loractl.cli import main
def call(*words):
    try:
        main(["--quiet", *words])
    except SystemExit as done:
        assert done.code == 0, done.code
call("merge", "{one}", "{two}", "--rank", "4")
call("interpolate", "{one}", "{two}", "--steps", "2")
call("resize", "{one}", "--rank", "2")
call("diff", "{one}", "{two}")
call("diff", "{one}", "{two}")
assert not {{"diffusers", "transformers", "peft"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("merged.safetensors", "merged.job.toml", "interpolation", "resized.safetensors", "resized.job.toml")
    }, "diff writes nothing"
