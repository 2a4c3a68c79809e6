"""kohya's and ComfyUI's names mean one module each, for every module of the full-size models, and fused weights come
apart and together exactly.
"""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from loractl.errors import FormatError, MismatchError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.names import flatten
from loractl.formats.natives import (
    Native,
    find,
    find_own,
    fuse,
    fuse_deltas,
    fuse_vectors,
    natives,
    split,
    split_vector,
)
from loractl.formats.safefile import read_header
from loractl.formats.sgm import from_flat_sgm, from_sgm, to_sgm
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.formats.adapters import distance, random_update
from tests.formats.test_names import UNETS, layers

SD3_MEDIUM = {  # stabilityai/stable-diffusion-3-medium-diffusers, transformer/config.json
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
    "out_channels": 16,
}
SD35_MEDIUM = {**SD3_MEDIUM, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}
FLUX_DEV = {"guidance_embeds": True}  # the defaults of the class are Flux-dev's: 19 + 38 blocks of 24 heads of 128


def transformer(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "flux":
            return FluxTransformer2DModel(**FLUX_DEV)
        return SD3Transformer2DModel(**(SD3_MEDIUM if name == "sd3" else SD35_MEDIUM))


@pytest.mark.parametrize(("name", "native", "count"), [("sd3", 245, 341), ("sd3.5", 271, 393), ("flux", 314, 504)])
def test_every_layer_of_a_transformer_has_one_native_name(name: str, native: int, count: int) -> None:
    paths = [f"transformer.{path}" for path in layers(transformer(name))]
    found = natives(paths, name.removesuffix(".5"))
    assert None not in found.values()
    parts = [path for module in found.values() if module for path in module.paths]
    assert sorted(parts) == sorted(paths)
    assert (len(found), len(paths)) == (native, count)
    assert all(find(key) == module == find(flatten(key), flat=True) for key, module in found.items())
    assert len({flatten(key) for key in found}) == len(found)
    for path in paths:
        own = path.removeprefix("transformer.")
        assert find_own(own) == find_own(flatten(own), flat=True) == Native((path,))


# What sd-scripts trains: all linear layers of its SingleDiTBlock (networks/lora_sd3.py, library/sd3_models.py), or of
# its DoubleStreamBlock and SingleStreamBlock (networks/lora_flux.py, library/flux_models.py), and what `emb_dims` and
# `in_dims` name; of CLIP and T5, attention and feed-forward. The list of Flux is that of networks/convert_flux_lora.py.
SD_SCRIPTS_BLOCK = ("attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2", "adaLN_modulation_1")
SD_SCRIPTS_CLIP = [f"self_attn_{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
SD_SCRIPTS_T5 = [f"0_SelfAttention_{name}" for name in "qkvo"]
SD_SCRIPTS_T5 += [f"1_DenseReluDense_{name}" for name in ("wi_0", "wi_1", "wo")]


def sd_scripts_names(name: str) -> set[str]:
    """The names of all modules that sd-scripts makes for a denoiser."""
    if name == "flux":
        stream = ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")
        double = {f"double_blocks_{n}_{side}_{own}" for n in range(19) for side in ("img", "txt") for own in stream}
        single = {f"single_blocks_{n}_{own}" for n in range(38) for own in ("linear1", "linear2", "modulation_lin")}
        inner = {f"{own}_in_{layer}" for own in ("time", "vector", "guidance") for layer in ("in_layer", "out_layer")}
        return double | single | inner | {"img_in", "txt_in"}
    context = {n: SD_SCRIPTS_BLOCK if n < 23 else ("attn_qkv", "adaLN_modulation_1") for n in range(24)}
    found = {f"joint_blocks_{n}_x_block_{own}" for n in range(24) for own in SD_SCRIPTS_BLOCK}
    found |= {f"joint_blocks_{n}_context_block_{own}" for n, names in context.items() for own in names}
    if name == "sd3.5":
        found |= {f"joint_blocks_{n}_x_block_attn2_{own}" for n in range(13) for own in ("qkv", "proj")}
    found |= {f"{own}_embedder_mlp_{layer}" for own in "ty" for layer in (0, 2)}
    return found | {"context_embedder", "x_embedder_proj", "final_layer_adaLN_modulation_1", "final_layer_linear"}


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux"])
def test_the_names_are_those_that_sd_scripts_gives(name: str) -> None:
    """Of all layers, but for the last two of Flux, which it has no setting for."""
    paths = [f"transformer.{path}" for path in layers(transformer(name))]
    ours = {flatten(native) for native in natives(paths, name.removesuffix(".5"))}
    beyond = {"final_layer_adaLN_modulation_1", "final_layer_linear"} if name == "flux" else set()
    assert ours - beyond == sd_scripts_names(name)


@pytest.mark.parametrize(
    ("base", "prefix", "component", "names"),
    [
        ("sd3", "lora_te1_text_model_encoder_layers_{}_", "text_encoder", SD_SCRIPTS_CLIP),
        ("sd3", "lora_te2_text_model_encoder_layers_{}_", "text_encoder_2", SD_SCRIPTS_CLIP),
        ("sd3", "lora_te3_encoder_block_{}_layer_", "text_encoder_3", SD_SCRIPTS_T5),
        ("flux", "lora_te1_text_model_encoder_layers_{}_", "text_encoder", SD_SCRIPTS_CLIP),
        ("flux", "lora_te3_encoder_block_{}_layer_", "text_encoder_2", SD_SCRIPTS_T5),
    ],
)
def test_sd_scripts_names_of_text_encoders_are_read_and_written(
    tmp_path: Path, base: str, prefix: str, component: str, names: list[str]
) -> None:
    denoiser = {"sd3": "joint_blocks_0_x_block_attn_proj", "flux": "double_blocks_0_img_mlp_0"}[base]
    keys = [f"lora_unet_{denoiser}", *(prefix.format(n) + name for n in (0, 11) for name in names)]
    tensors = {f"{key}.lora_{part}.weight": torch.ones(2, 2) for key in keys for part in ("down", "up")}
    save_file(tensors, tmp_path / "a", {"ss_base_model_version": "flux1" if base == "flux" else "sd3"})
    adapter = load_adapter(tmp_path / "a")
    assert {path.partition(".")[0] for path in adapter.modules} == {"transformer", component}
    save_adapter(tmp_path / "b", adapter, "kohya", name="b")
    written = read_header(tmp_path / "b").entries.keys()
    assert {key for key in written if not key.endswith(".alpha")} == tensors.keys()


def test_every_layer_of_sdxl_has_one_native_name() -> None:
    with torch.device("meta"):
        paths = layers(UNet2DConditionModel(**UNETS["SDXL"]))
    names = {path: to_sgm(path) for path in paths}
    assert None not in names.values()
    assert len({flatten(name) for name in names.values() if name}) == len(paths) == 794
    assert [from_sgm(names[path] or "") for path in paths] == paths
    assert [from_flat_sgm(flatten(names[path] or "")) for path in paths] == paths
    assert names["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"] == (
        "input_blocks.4.1.transformer_blocks.0.attn1.to_k"
    )
    assert names["up_blocks.0.attentions.1.proj_in"] == "output_blocks.1.1.proj_in"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1"])
def test_native_names_of_the_first_models_are_read(name: str) -> None:
    """As in checkpoints, where the first upsampler has no attention before it."""
    assert from_sgm("output_blocks.2.1.conv") == "up_blocks.0.upsamplers.0.conv"
    with torch.device("meta"):
        paths = [path for path in layers(UNet2DConditionModel(**UNETS[name])) if "add_embedding" not in path]
    assert [from_sgm(to_sgm(path) or "") for path in paths] == paths


@pytest.mark.parametrize(
    "name", ["double_blocks.{}.img_attn.qkv", "double_blocks.0.nothing", "input_blocks.0.7", "", "1"]
)
def test_what_is_no_native_name_is_not_found(name: str) -> None:
    assert find(name) is None
    assert from_sgm(name) is None


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 2), (3,)])
def test_fused_updates_are_exact_both_ways(present: tuple[int, ...]) -> None:
    module = find("single_blocks.7.linear1")
    assert module
    generator = torch.Generator().manual_seed(0)
    parts = {
        path: random_update((32 if path.endswith("proj_mlp") else 8, 8), 2 + n, 1.0 + n, generator)
        for n, path in enumerate(module.paths)
        if n in present
    }
    fused = fuse(module, parts)
    assert fused.rank == sum(part.rank for part in parts.values())
    rows = [8, 8, 8, 32]
    blocks = torch.split(fused.delta(), rows)
    for n, path in enumerate(module.paths):
        wanted = parts[path].delta() if path in parts else torch.zeros(rows[n], 8)
        torch.testing.assert_close(blocks[n], wanted)
    back = split(module, fused)
    assert {path: low.rank for path, low in back.items()} == {path: low.rank for path, low in parts.items()}
    assert distance(Adapter(back), Adapter(parts)) < 1e-6
    torch.testing.assert_close(fuse(module, back).delta(), fused.delta())


def test_a_dense_fused_update_is_shared_out_by_rows() -> None:
    module = find("joint_blocks.0.x_block.attn.qkv")
    assert module
    low = random_update((24, 8), 4, 2.0, torch.Generator().manual_seed(0))
    parts = split(module, low)
    assert torch.equal(torch.cat([parts[path].delta() for path in module.paths]), low.delta())


def test_equal_parts_have_three_times_the_rank_and_alpha() -> None:
    module = find("double_blocks.0.img_attn.qkv")
    assert module
    generator = torch.Generator().manual_seed(0)
    parts = {path: random_update((8, 8), 4, 2.0, generator) for path in module.paths}
    fused = fuse(module, parts)
    assert (fused.rank, fused.alpha) == (12, 6.0)
    assert torch.equal(fused.down, torch.cat([parts[path].down for path in module.paths]))
    for path, low in split(module, fused).items():
        assert torch.equal(low.up, parts[path].up)
        assert (low.rank, low.alpha) == (4, 2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"])
def test_what_was_taken_apart_is_what_it_was_again(name: str, dtype: torch.dtype) -> None:
    """Also where a rank counts for some of the parts alone."""
    module = find(name)
    assert module
    shape = (24 if name.endswith("qkv") else 56, 8)
    low = random_update(shape, 4, 2.0, torch.Generator().manual_seed(0)).to(dtype)
    fused = fuse(module, split(module, low))
    assert torch.equal(fused.down, low.down) and torch.equal(fused.up, low.up)
    assert fused.alpha == low.alpha
    low.up[:8, 1] = 0
    fused = fuse(module, split(module, low))
    assert fused.rank == 4
    torch.testing.assert_close(fused.delta(), low.delta())


def test_whole_updates_are_joined_row_by_row() -> None:
    module = find("single_blocks.0.linear1")
    assert module
    rows = torch.randn(56, 8).split([8, 8, 8, 32])
    parts = dict(zip(module.paths, rows, strict=True))
    assert torch.equal(fuse_deltas(module, parts), torch.cat(rows))
    del parts[module.paths[1]]
    assert torch.equal(fuse_deltas(module, parts), torch.cat([rows[0], torch.zeros(8, 8), *rows[2:]]))
    alone = Native(module.paths[:1])
    assert fuse_deltas(alone, {alone.paths[0]: torch.ones(3, 4, 1, 1)}).shape == (3, 4, 1, 1)


def test_scale_and_shift_change_places_in_a_modulation_of_two() -> None:
    module = find("final_layer.adaLN_modulation.1")
    assert module
    low = LowRank(torch.ones(1, 2), torch.tensor([[1.0], [1.0], [2.0], [2.0]]), 1.0)
    turned = split(module, low)["transformer.norm_out.linear"]
    assert turned.up.flatten().tolist() == [2.0, 2.0, 1.0, 1.0]
    assert torch.equal(fuse(module, {"transformer.norm_out.linear": turned}).up, low.up)
    six = LowRank(torch.ones(1, 2), torch.arange(12.0).view(12, 1), 1.0)
    assert find("double_blocks.0.img_mod.lin") is not None
    assert torch.equal(
        split(Native(("transformer.transformer_blocks.0.norm1.linear",), native=True), six).popitem()[1].up, six.up
    )


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 2), (3,)])
@pytest.mark.parametrize("width", [8, None])
def test_fused_vectors_are_exact_both_ways(present: tuple[int, ...], width: int | None) -> None:
    module = find("single_blocks.7.linear1")
    assert module
    sizes = [8, 8, 8, 32]
    parts = {path: torch.rand(sizes[n]) + 1 for n, path in enumerate(module.paths) if n in present}
    whole = fuse_vectors(module, parts, width)
    wanted = [parts.get(path, torch.zeros(size)) for path, size in zip(module.paths, sizes, strict=True)]
    assert torch.equal(whole, torch.cat(wanted))
    assert all(torch.equal(split_vector(module, whole, width)[path], parts[path]) for path in parts)


def test_the_bias_of_a_turned_modulation_is_turned_too() -> None:
    """As the rows of its weight; six parts stay as they are, and a bias alone that may be either is refused."""
    last, inner = find("final_layer.adaLN_modulation.1"), find("joint_blocks.0.context_block.adaLN_modulation.1")
    assert last and inner
    for width in (2, None):
        (turned,) = split_vector(last, torch.tensor([1.0, 1, 2, 2]), width).values()
        assert turned.tolist() == [2, 2, 1, 1]
        assert fuse_vectors(last, {last.paths[0]: turned}, width).tolist() == [1, 1, 2, 2]
    six = torch.arange(12.0)
    assert torch.equal(split_vector(inner, six, 2)[inner.paths[0]], six)
    with pytest.raises(FormatError, match="has a bias alone"):
        split_vector(inner, six, None)


def test_parts_that_do_not_fit_together_are_not_fused() -> None:
    module = find("double_blocks.0.img_attn.qkv")
    assert module
    with pytest.raises(MismatchError, match=r"attn\.to_q changes a weight \(7, 8\)"):
        fuse(module, {module.paths[0]: LowRank(torch.ones(1, 8), torch.ones(7, 1), 1.0)})
