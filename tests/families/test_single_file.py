"""A checkpoint in one file is loaded as the very model it was made of, or refused in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.bases import BASES, configurations, recognize
from loractl.errors import FormatError, InputError, MismatchError
from loractl.families.single_file import load_single_file, variant_of
from tests.families import single

_SD = ("unet", "vae", "text_encoder")
NETWORKS = {
    "sd": _SD,
    "sd2": _SD,
    "sdxl": (*_SD, "text_encoder_2"),
    "sd3": ("transformer", "vae", "text_encoder", "text_encoder_2"),
}
Made = tuple[Any, dict[str, Tensor], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Kind → pipeline, its tensors in the single-file layout, and a folder of its configurations and tokenizers."""
    kinds = {
        "sd": (single.sd, single.sd_tensors),
        "sd2": (single.sd2, single.sd2_tensors),
        "sdxl": (single.sdxl, single.sdxl_tensors),
        "sd3": (single.sd3, single.sd3_tensors),
    }
    found: dict[str, Made] = {}

    def make(kind: str) -> Made:
        if kind not in found:
            build, tensors = kinds[kind]
            pipeline = build()
            folder = single.configurations_of(pipeline, tmp_path_factory.mktemp(kind))
            found[kind] = (pipeline, tensors(pipeline), folder)
        return found[kind]

    return make


def same(pipeline: Any, loaded: Any, names: tuple[str, ...], cast: torch.dtype = torch.float32) -> bool:
    """Whether all networks have the same numbers, those of the first having gone through `cast`."""
    for name in names:
        wanted, found = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        if wanted.keys() != found.keys():
            return False
        if not all(torch.equal(wanted[key].to(cast).float(), found[key].float()) for key in wanted):
            return False
    return True


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_is_the_model_it_was_made_of(kind: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    pipeline, tensors, folder = made(kind)
    file = single.write(tmp_path / "model.safetensors", tensors)
    loaded = load_single_file(str(file), torch.float32, str(folder))
    assert type(loaded) is type(pipeline)
    assert same(pipeline, loaded, NETWORKS[kind])
    assert loaded.tokenizer("a dog").input_ids == pipeline.tokenizer("a dog").input_ids


@pytest.mark.slow
def test_a_file_of_flux_is_the_model_it_was_made_of(tmp_path: Path) -> None:
    pipeline = single.flux().to(torch.bfloat16)
    folder = single.configurations_of(pipeline, tmp_path / "configurations")
    file = single.write(tmp_path / "model.safetensors", single.flux_tensors(pipeline), torch.bfloat16)
    loaded = load_single_file(str(file), torch.bfloat16, str(folder))
    assert type(loaded) is type(pipeline)
    assert same(pipeline, loaded, ("transformer", "vae", "text_encoder", "text_encoder_2"), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_weights_of_fewer_bits_become_what_is_asked_for(
    dtype: torch.dtype, made: Callable[[str], Made], tmp_path: Path
) -> None:
    pipeline, tensors, folder = made("sd")
    loaded = load_single_file(str(single.write(tmp_path / "m.safetensors", tensors, dtype)), torch.float32, str(folder))
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.float32}
    assert same(pipeline, loaded, NETWORKS["sd"], dtype)
    assert not same(pipeline, loaded, NETWORKS["sd"])  # they did have fewer


def test_a_ckpt_is_loaded_when_pickles_are_allowed(made: Callable[[str], Made], tmp_path: Path) -> None:
    pipeline, tensors, folder = made("sd")
    file = single.write(tmp_path / "model.ckpt", tensors)
    with pytest.raises(InputError, match="allow_pickle"):
        load_single_file(str(file), torch.float32, str(folder))
    loaded = load_single_file(str(file), torch.float32, str(folder), allow_pickle=True)
    assert same(pipeline, loaded, NETWORKS["sd"])
    assert [each.name for each in tmp_path.iterdir()] == ["model.ckpt"]


def test_what_the_file_lacks_comes_from_the_folder(made: Callable[[str], Made], tmp_path: Path) -> None:
    pipeline, tensors, folder = made("sd")
    file = single.write(tmp_path / "model.safetensors", single.without(tensors, "first_stage_model."))
    with pytest.raises(InputError, match=r"model\.safetensors has no vae: set model\.config"):
        load_single_file(str(file), torch.float32, str(folder))
    whole = single.configurations_of(pipeline, tmp_path / "whole", keep=("vae",))
    assert same(pipeline, load_single_file(str(file), torch.float32, str(whole)), NETWORKS["sd"])


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.decoder.conv_in.weight",
    ],
)
def test_a_checkpoint_that_is_cut_is_refused(key: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    _, tensors, folder = made("sd")
    lacking = single.without(tensors, key)
    assert len(lacking) == len(tensors) - 1
    file = single.write(tmp_path / "model.safetensors", lacking)
    with pytest.raises(InputError, match="lacks tensors of one of its networks"):
        load_single_file(str(file), torch.float32, str(folder))


def test_without_a_tokenizer_the_sentence_says_where_to_put_one(made: Callable[[str], Made], tmp_path: Path) -> None:
    _, tensors, _ = made("sd")
    file = single.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"no tokenizer.*model\.config.*tokenizer/"):
        load_single_file(str(file), torch.float32)


def test_another_family_is_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    _, tensors, _ = made("sdxl")
    _, _, folder = made("sd")
    file = single.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(MismatchError, match="Stable Diffusion XL, but"):
        load_single_file(str(file), torch.float32, str(folder))


def test_other_shapes_than_the_configurations_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    _, tensors, _ = made("sd")
    wide = single.sd()
    wide.register_modules(unet=single.tiny_unet(layers_per_block=2, block_out_channels=(16, 64)))
    folder = single.configurations_of(wide, tmp_path / "wide")
    file = single.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(MismatchError, match="does not fit the configurations"):
        load_single_file(str(file), torch.float32, str(folder))


def test_weights_with_scales_beside_them_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    _, tensors, folder = made("sd")
    file = single.write(tmp_path / "m.safetensors", tensors | {"model.diffusion_model.scaled_fp8": torch.zeros(2)})
    with pytest.raises(FormatError, match="scaled_fp8"):
        load_single_file(str(file), torch.float32, str(folder))


# One key that each kind of file has and none of those before it in the table.
KEYS = {
    "conditioner.embedders.1.model.ln_final.weight": "sdxl",
    "cond_stage_model.model.ln_final.weight": "sd_v2_v",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": "sd_v1",
    "model.diffusion_model.joint_blocks.37.x_block.mlp.fc1.weight": "sd35_large",
    "joint_blocks.0.x_block.attn2.qkv.weight": "sd35_medium",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "sd3",
    "guidance_in.in_layer.weight": "flux_dev",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "flux_schnell",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_family_is_told_by_its_keys(key: str) -> None:
    others = ["first_stage_model.decoder.conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"]
    assert recognize(Path("x"), [*others, key]) == KEYS[key]
    assert set(KEYS.values()) == set(BASES)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "refiner"),
        ("control_model.time_embed.0.weight", "ControlNet"),
        ("lora_unet_mid_block_attentions_0_proj_in.alpha", "adapter"),
        ("something.else", "no checkpoint of a family"),
    ],
)
def test_other_files_are_refused_with_a_reason(key: str, what: str) -> None:
    with pytest.raises(MismatchError, match=what):
        recognize(Path("x.safetensors"), [key])


@pytest.mark.parametrize("base", BASES)
def test_every_base_has_its_configurations(base: str) -> None:
    """Of each network of its layout; all but the tokenizers, which no base has."""
    folders = {file.parent.name for file in configurations(base).glob("*/*.json")}
    assert folders == {*BASES[base].layout.parts, "scheduler"}


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], None),
    ],
)
def test_the_variant_is_asked_for_where_there_is_no_other(
    files: list[str], variant: str | None, tmp_path: Path
) -> None:
    (tmp_path / "unet").mkdir()
    for file in files:
        (tmp_path / "unet" / file).touch()
    assert variant_of(tmp_path) == variant
