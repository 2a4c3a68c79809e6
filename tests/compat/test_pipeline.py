"""Files and pipelines: several LoRA at once, tokens whose names are taken, and files that are refused whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.compat import (
    LoRAManager,
    apply_learned_embed_in_clip,
    inject_trainable_lora,
    inject_trainable_lora_extended,
    load_safeloras,
    patch_pipe,
    save_safeloras,
    save_safeloras_with_embeds,
)
from loractl.errors import FormatError, JobError, LoractlError, MismatchError, NumericsError
from loractl.formats.safefile import read_tensors, write_tensors
from loractl.inject.tokens import token_parameters
from tests.compat.networks import CLIP, assert_near, deltas, disturb, wrappers
from tests.tiny import WIDTH, tiny_sd

UNET = {"Attention", "GEGLU"}
EXTENDED = {"ResnetBlock2D", "Attention", "GEGLU"}


@pytest.fixture
def pipe() -> Any:
    return tiny_sd()


def written(path: Path, rank: int, seed: int, extended: bool = False, **tokens: Tensor) -> dict[str, Tensor]:
    """Writes a file with both networks and the tokens; returns the updates of the UNet as it has them."""
    source: Any = tiny_sd()
    if extended:
        inject_trainable_lora_extended(source.unet, r=rank)
    else:
        inject_trainable_lora(source.unet, r=rank)
    inject_trainable_lora(source.text_encoder, CLIP, r=rank + 1)
    for network in (source.unet, source.text_encoder):
        disturb(network, seed)
        for layer in wrappers(network).values():  # numbers that fp16 has
            layer.lora_up.weight.data.copy_(layer.lora_up.weight.data.half())
            layer.lora_down.weight.data.copy_(layer.lora_down.weight.data.half())
    classes = EXTENDED if extended else UNET
    modelmap = {"unet": (source.unet, classes), "text_encoder": (source.text_encoder, CLIP)}
    save_safeloras_with_embeds(modelmap, {f"<{name}>": vector for name, vector in tokens.items()}, path)
    return deltas(source.unet) | {f"text:{path}": each for path, each in deltas(source.text_encoder).items()}


def found(pipe: Any) -> dict[str, Tensor]:
    return deltas(pipe.unet) | {f"text:{path}": each for path, each in deltas(pipe.text_encoder).items()}


def vector(value: float) -> Tensor:
    return torch.full((WIDTH,), value)


def test_scale_and_selector_are_folded_into_the_file(pipe: Any, tmp_path: Path) -> None:
    inject_trainable_lora_extended(pipe.unet, r=2)
    disturb(pipe.unet)
    for layer in wrappers(pipe.unet).values():
        layer.scale = -0.5
        layer.set_selector_from_diag(torch.tensor([2.0, 0.25]))
    right = deltas(pipe.unet)
    save_safeloras({"unet": (pipe.unet, EXTENDED)}, tmp_path / "a.safetensors")
    other = tiny_sd()
    patch_pipe(other, tmp_path / "a.safetensors")
    assert_near(deltas(other.unet), right, 2e-3)
    assert all(layer.scale == 1.0 for layer in wrappers(other.unet).values())


# --- several at once -------------------------------------------------------------------------------------------------


def test_the_manager_sums_files_of_other_ranks_and_modules(pipe: Any, tmp_path: Path) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    one = written(files[0], 2, 0, s1=vector(1.0), s2=vector(2.0))
    two = written(files[1], 3, 1, extended=True, s1=vector(3.0))
    patch_pipe(pipe, files[1], patch_ti=False)
    manager = LoRAManager(files, pipe)
    zero = torch.zeros(())
    for scales in ([1.0, 0.0], [0.0, 1.0], [0.7, -0.3]):
        manager.tune(scales)
        right = {path: scales[0] * one.get(path, zero) + scales[1] * each for path, each in two.items()}
        assert_near(found(pipe), right)
    rows = token_parameters(pipe.text_encoder)
    assert {token: float(each.detach()[0, 0]) for token, each in rows.items()} == {
        "<s0-0>": 1.0,
        "<s0-1>": 2.0,
        "<s1-0>": 3.0,
    }
    assert manager.prompt("a <2> on a <1>") == "a <s1-0> on a <s0-0><s0-1>"
    assert manager.prompt(None) is None
    with pytest.raises(JobError, match="1 scales are not one for each of the 2 files"):
        manager.tune([1.0])


def test_a_new_manager_starts_afresh(pipe: Any, tmp_path: Path) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    one, _ = written(files[0], 2, 0, s1=vector(1.0)), written(files[1], 3, 1, extended=True, s1=vector(3.0))
    LoRAManager(files, pipe).tune([0.5, 0.5])
    LoRAManager(files[:1], pipe)
    assert_near(found(pipe), one)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_there_gets_another_name_or_another_vector(pipe: Any) -> None:
    teach = {"<s1>": vector(1.0), "<s2>": vector(2.0)}
    assert apply_learned_embed_in_clip(teach, pipe.text_encoder, pipe.tokenizer, token="<s2>") == "<s2>"
    assert apply_learned_embed_in_clip({"<s2>": vector(3.0)}, pipe.text_encoder, pipe.tokenizer) == "<s2-1>"
    assert apply_learned_embed_in_clip({"<s2>": vector(4.0)}, pipe.text_encoder, pipe.tokenizer) == "<s2-2>"
    apply_learned_embed_in_clip({"<s2>": vector(5.0)}, pipe.text_encoder, pipe.tokenizer, idempotent=True)
    rows = token_parameters(pipe.text_encoder)
    assert {token: float(each.detach()[0, 0]) for token, each in rows.items()} == {
        "<s2>": 5.0,
        "<s2-1>": 3.0,
        "<s2-2>": 4.0,
    }
    ids = pipe.tokenizer("<s2-1>", add_special_tokens=False, return_tensors="pt").input_ids
    assert torch.equal(pipe.text_encoder.get_input_embeddings()(ids)[0, 0], vector(3.0))


@pytest.mark.parametrize(
    ("embeds", "token", "error", "says"),
    [
        ({"<s1>": vector(1.0)}, "<s3>", JobError, "no token <s3> to learn: the tokens are <s1>"),
        ({"<s1>": torch.ones(7)}, None, MismatchError, "7"),
        ({"<s1>": torch.ones(2, WIDTH)}, None, MismatchError, r"is \(1, 32\) on the model, not \(2, 32\)"),
    ],
)
def test_tokens_that_cannot_be_learnt(
    pipe: Any, embeds: dict[str, Tensor], token: str | None, error: type[LoractlError], says: str
) -> None:
    apply_learned_embed_in_clip({"<s1>": vector(1.0)}, pipe.text_encoder, pipe.tokenizer)
    with pytest.raises(error, match=says):
        apply_learned_embed_in_clip(embeds, pipe.text_encoder, pipe.tokenizer, token, idempotent=True)
    assert torch.equal(token_parameters(pipe.text_encoder)["<s1>"].data, vector(1.0)[None])


# --- files that are refused ------------------------------------------------------------------------------------------


def test_a_file_that_fits_in_part_changes_nothing(pipe: Any, tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors", 2, 0, s1=vector(1.0))
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    tensors["text_encoder:3:up"] = torch.zeros(5, 3)
    write_tensors(tmp_path / "b.safetensors", tensors, metadata)
    with pytest.raises(MismatchError, match=r"encoder\.layers\.0\.self_attn\.out_proj has a weight"):
        patch_pipe(pipe, tmp_path / "b.safetensors")
    assert not found(pipe) and not token_parameters(pipe.text_encoder)


def test_a_part_for_a_network_that_is_not_there(pipe: Any, tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors", 2, 0)
    pipe.text_encoder = None
    with pytest.raises(MismatchError, match="a part for the text_encoder, which the pipeline does not have"):
        patch_pipe(pipe, tmp_path / "a.safetensors")
    patch_pipe(pipe, tmp_path / "a.safetensors", patch_text=False)
    assert wrappers(pipe.unet)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, "convert --to cloneofsimo"),
        ({"unet:1:up": torch.ones(2, 1), "unet:1:down": torch.ones(1, 2)}, "unet are not numbered from 0"),
        ({"unet:0:up": torch.ones(2, 1)}, "unet are not numbered from 0 in pairs"),
    ],
    ids=["kohya", "from 1", "without a down"],
)
def test_files_that_are_not_understood(tmp_path: Path, tensors: dict[str, Tensor], says: str) -> None:
    write_tensors(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(FormatError, match=rf"a\.safetensors: .*{says}"):
        load_safeloras(tmp_path / "a.safetensors")


def test_what_could_not_be_read_is_not_written(pipe: Any, tmp_path: Path) -> None:
    inject_trainable_lora(pipe.unet, {"Attention"}, r=2)
    with pytest.raises(MismatchError, match=r"ff\.net\.0\.proj has no LoRA"):
        save_safeloras({"unet": (pipe.unet, UNET)}, tmp_path / "a.safetensors")
    next(iter(wrappers(pipe.unet).values())).scale = 1e9
    disturb(pipe.unet)
    with pytest.raises(NumericsError, match=r"unet:0:up is not finite in torch\.float16"):
        save_safeloras({"unet": (pipe.unet, {"Attention"})}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
