"""The file operations on two adapters made by other people: exact, and their learned tokens stay."""

import json
from pathlib import Path
from typing import Any

import loractl_interpolate
import loractl_merge
import loractl_resize
import pytest
import torch
from loractl_interpolate.command import interpolate
from loractl_merge.command import merge
from loractl_merge.spec import MergeSpec
from loractl_resize.command import resize
from torch import Tensor
from typer import BadParameter

from loractl.errors import MismatchError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.safefile import read_tensors
from loractl.tensors.adapter import Adapter, content_hash
from tests.tensors.updates import delta, random_update

DATA = Path(__file__).parents[1] / "data" / "adapters"
DISNEY, ANALOG = (DATA / f"{name}.safetensors" for name in ("lora_disney", "analog_svd_rank4"))
S1, S2 = "text_encoder.<s1>", "text_encoder.<s2>"


def run(method: Any, job: Any) -> list[Adapter]:
    return [load_adapter(file) for file in method.start(job, lambda _: None).files.values()]


@pytest.mark.parametrize("weights", [(0.6, 0.4), (1.5, -0.75)])
def test_a_merge_of_the_two_is_the_dense_sum_in_every_module(tmp_path: Path, weights: tuple[float, float]) -> None:
    text = ",".join(map(str, weights))
    job = merge([DISNEY, ANALOG], weights=text, dtype="fp32", out=tmp_path / "m.safetensors")
    (merged,) = run(loractl_merge, job)
    one, two = (load_adapter(file).modules for file in (DISNEY, ANALOG))
    assert len(merged.modules) == 192 and merged.modules.keys() == one.keys() == two.keys()
    for path, low in merged.modules.items():
        right = weights[0] * delta(one[path]) + weights[1] * delta(two[path])
        assert low.rank == one[path].rank + two[path].rank
        assert (delta(low) - right).norm() <= 1e-5 * right.norm(), path
    tokens = load_adapter(DISNEY).tokens
    assert merged.tokens.keys() == tokens.keys() == {S1, S2}
    assert all(torch.equal(merged.tokens[path], tokens[path]) for path in tokens)


def test_the_ends_of_a_series_between_the_two_are_they(tmp_path: Path) -> None:
    files = list(
        loractl_interpolate.start(interpolate(DISNEY, ANALOG, at="0,1", out=tmp_path), lambda _: None).files.values()
    )
    tokens = read_tensors(DISNEY)[0]
    for file, end in zip(files, (DISNEY, ANALOG), strict=True):
        found, right = (load_adapter(each).modules for each in (file, end))
        assert found.keys() == right.keys()
        assert all(torch.equal(delta(found[path]), delta(right[path])) for path in right)
        assert all(torch.equal(read_tensors(file)[0][token], tokens[token]) for token in ("<s1>", "<s2>"))
    assert content_hash(read_tensors(files[0])[0]) == content_hash(tokens)


def test_a_resized_file_keeps_its_tokens(tmp_path: Path) -> None:
    (small,) = run(loractl_resize, resize(DISNEY, energy=0.9, format="kohya", out=tmp_path / "small.safetensors"))
    assert {path: tuple(each.shape) for path, each in small.tokens.items()} == {S1: (1, 768), S2: (1, 768)}


# --- tokens that clash -----------------------------------------------------------------------------------------------


def written(path: Path, **tokens: Tensor) -> Path:
    """A small file with the tokens <s1>, <s2>, …"""
    modules = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": random_update((8, 6), 2, 1.0, 0)}
    learned = {f"text_encoder.<{name}>": embedding for name, embedding in tokens.items()}
    save_adapter(path, Adapter(modules, {}, learned), "kohya", dtype=torch.float32, name=path.stem)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two files that agree on <s2> and not on <s1>."""
    one = written(tmp_path / "one.safetensors", s1=torch.zeros(1, 4), s2=torch.ones(2, 4))
    return [one, written(tmp_path / "two.safetensors", s1=torch.ones(1, 4), s2=torch.ones(2, 4))]


def test_a_token_with_two_meanings_is_refused(pair: list[Path], tmp_path: Path) -> None:
    says = r'one\.safetensors and two\.safetensors give the token <s1> different vectors: rename .* "<s1-b>"'
    with pytest.raises(MismatchError, match=says):
        run(loractl_merge, merge(pair, out=tmp_path / "m.safetensors"))
    with pytest.raises(MismatchError, match=says):
        run(loractl_interpolate, interpolate(*pair, out=tmp_path / "series"))
    assert sorted(tmp_path.rglob("*.safetensors")) == pair


def test_a_renamed_one_is_kept_beside_the_other(pair: list[Path], tmp_path: Path) -> None:
    wanted = {S1: torch.zeros(1, 4), "text_encoder.<dog>": torch.ones(1, 4), S2: torch.ones(2, 4)}
    results = run(loractl_merge, merge(pair, rename=["2:<s1>=<dog>"], out=tmp_path / "m.safetensors"))
    results += run(loractl_interpolate, interpolate(*pair, rename=["<s1>=<dog>"], steps=2, out=tmp_path / "series"))
    assert len(results) == 3
    for adapter in results:
        assert adapter.tokens.keys() == wanted.keys()
        assert all(torch.equal(adapter.tokens[path], wanted[path]) for path in wanted)


def test_so_it_is_said_in_a_job(pair: list[Path], tmp_path: Path) -> None:
    inputs = [{"path": str(pair[0])}, {"path": str(pair[1]), "rename": {"<s1>": "<dog>"}}]
    output = {"path": str(tmp_path / "m.safetensors")}
    job = MergeSpec.model_validate_json(json.dumps({"method": "merge", "adapters": inputs, "output": output}))
    assert job == merge(pair, rename=["2:<s1>=<dog>"], name="adapter", out=tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("rename", "error", "says"),
    [
        ("2:<s3>=<dog>", MismatchError, r"has no token <s3> to rename: its tokens are <s1>, <s2>"),
        ("1:<s1>=<s2>", MismatchError, "two tokens of one name"),
        ("3:<s1>=<dog>", BadParameter, "is not like 2:<s1>=<dog>"),
        ("<s1>=<dog>", BadParameter, "is not like 2:<s1>=<dog>"),
    ],
)
def test_wrong_renames(pair: list[Path], tmp_path: Path, rename: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(loractl_merge, merge(pair, rename=[rename], out=tmp_path / "m.safetensors"))


def test_a_format_without_a_place_for_tokens_is_refused(pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no place for learned tokens"):
        run(loractl_resize, resize(pair[0], rank=1, format="diffusers", out=tmp_path / "m.safetensors"))
