"""The names in a single file mean one parameter each, and fused tensors are cut as diffusers cuts them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loractl.formats.ldm import Share, places
from loractl.formats.names import canonical
from loractl.formats.natives import natives
from tests.formats.models import NATIVE, OPEN_CLIP, WIDTH, native, open_clip
from tests.formats.test_names import layers
from tests.formats.test_natives import transformer

SD15 = Path(__file__).parents[1] / "data/sd15/unet.json"
# What differs from Stable Diffusion 1.5 in the public configurations.
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize("changes", [{}, SD21, SDXL], ids=["sd15", "sd21", "sdxl"])
def test_the_native_names_are_a_bijection_and_diffusers_agrees(changes: dict[str, Any]) -> None:
    config = json.loads(SD15.read_text(encoding="utf-8")) | changes
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = list(unet.state_dict())
    of_layout = {name: native(name) for name in names}
    if changes is SDXL:
        of_layout |= {name: new.replace("blocks.2.1.conv", "blocks.2.2.conv") for name, new in of_layout.items()}
    assert len(set(of_layout.values())) == len(names)
    assert convert_ldm_unet_checkpoint({NATIVE + new: name for name, new in of_layout.items()}, config) == {
        name: name for name in names
    }
    shapes = {NATIVE + of_layout[name]: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    assert dict(places(shapes)) == {
        NATIVE + new: Share(f"unet.{name}", (range(shapes[NATIVE + new][0]),)) for name, new in of_layout.items()
    }


def cut(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Path of a parameter → what the layout's shares make of the tensors."""
    found = {}
    for key, share in places(shapes or {key: tuple(tensor.shape) for key, tensor in tensors.items()}):
        rows = torch.cat([tensors[key][rows.start : rows.stop] for rows in share.rows])
        found[share.path] = tensors[key].T if share.transposed else rows
    assert len(found) >= len(tensors)
    return found


def test_openclip_is_cut_as_diffusers_cuts_it() -> None:
    tensors = open_clip(24)
    text_model = SimpleNamespace(config=SimpleNamespace(hidden_size=WIDTH))
    wanted = convert_open_clip_checkpoint(text_model, dict(tensors))
    last = {key for key in tensors if f"{OPEN_CLIP}.23." in key}
    found = cut({key: tensor for key, tensor in tensors.items() if key not in last})
    assert {path.replace("text_encoder.", "text_model.") for path in found} == wanted.keys()
    assert all(torch.equal(found[name.replace("text_model.", "text_encoder.")], wanted[name]) for name in wanted)
    assert not dict(places(dict.fromkeys(last, (3, 3))))


def test_the_second_text_encoder_of_sdxl_is_a_bijection() -> None:
    """Every parameter of the full-size model but the tables, out of OpenCLIP's tensors, as diffusers has them."""
    config = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    wanted = {canonical(f"text_encoder_2.{name}"): tensor.shape for name, tensor in model.state_dict().items()}
    wanted = {path: shape for path, shape in wanted.items() if "embeddings." not in path}
    layer = {"ln_1": (1280,), "ln_2": (1280,), "attn.out_proj": (1280, 1280)}
    layer |= {"mlp.c_fc": (5120, 1280), "mlp.c_proj": (1280, 5120)}
    own = {f"{name}.weight": shape for name, shape in layer.items()}
    own |= {f"{name}.bias": shape[:1] for name, shape in layer.items()}
    own |= {"attn.in_proj_weight": (3840, 1280), "attn.in_proj_bias": (3840,)}
    prefix = "conditioner.embedders.1.model."
    shapes = {f"{prefix}transformer.resblocks.{n}.{name}": shape for n in range(32) for name, shape in own.items()}
    shapes |= {f"{prefix}ln_final.weight": (1280,), f"{prefix}ln_final.bias": (1280,)}
    shapes |= {f"{prefix}text_projection": (1280, 1280), f"{prefix}logit_scale": ()}
    found = list(places(shapes))
    assert len(found) == len({share.path for _, share in found}) == len(wanted) == 32 * 16 + 3
    for key, share in found:
        assert wanted[share.path] == (sum(map(len, share.rows)), *shapes[key][1:])
    rows: dict[str, list[int]] = {}
    for key, share in found:
        rows.setdefault(key, []).extend(row for part in share.rows for row in part)
    assert all(sorted(rows[key]) == [*range(shapes[key][0])] for key in shapes if shapes[key])


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux"])
def test_a_transformer_in_one_file_is_cut_as_diffusers_cuts_it(name: str) -> None:
    """Every layer of the full-size model; of each tensor there is one column, the numbers of its rows."""
    model = transformer(name)
    paths = layers(model)
    shapes, tensors = {}, {}
    for own, module in natives([f"transformer.{path}" for path in paths], name[:3].replace("flu", "flux")).items():
        parts = [model.get_parameter(f"{path.removeprefix('transformer.')}.weight") for path in module.paths]  # type: ignore[union-attr]
        rows = torch.arange(sum(len(part) for part in parts))
        tensors |= {f"{own}.weight": rows[:, None], f"{own}.bias": rows}
        shapes |= {f"{own}.weight": (len(rows), *parts[0].shape[1:]), f"{own}.bias": (len(rows),)}
    found = cut(tensors, shapes)
    wanted = convert_native(name, tensors)
    assert {path.removeprefix("transformer.") for path in found} == {
        f"{path}.{part}" for path in paths for part in ("weight", "bias")
    }
    assert all(torch.equal(found[path], wanted[path.removeprefix("transformer.")]) for path in found)


def convert_native(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What diffusers makes of a maker's tensors. It wants those that belong to no layer as well."""
    if name != "flux":
        return convert_sd3_transformer_checkpoint_to_diffusers({**tensors, "pos_embed": torch.zeros(1)})  # type: ignore[no-any-return]
    blocks = [f"double_blocks.{n}.{stream}_attn.norm" for n in range(19) for stream in ("img", "txt")]
    blocks += [f"single_blocks.{n}.norm" for n in range(38)]
    norms = {f"{block}.{which}_norm.scale": torch.ones(1) for block in blocks for which in ("query", "key")}
    return convert_flux_transformer_checkpoint_to_diffusers({**tensors, **norms})  # type: ignore[no-any-return]


def test_the_third_text_encoder_depends_on_the_family() -> None:
    key, layer = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight", (4, 4)
    for other, component in (
        ("joint_blocks.0.x_block.attn.proj.weight", "3"),
        ("double_blocks.0.img_mlp.0.weight", "2"),
    ):
        found = dict(places({key: layer, f"{NATIVE}{other}": layer}))
        assert found[key].path == f"text_encoder_{component}.encoder.block.0.layer.0.SelfAttention.q.weight"
        assert found[f"{NATIVE}{other}"].path.startswith("transformer.transformer_blocks.0.")
        assert dict(places({other: layer}))[other] == found[f"{NATIVE}{other}"]


@pytest.mark.parametrize("prefix", ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."])
@pytest.mark.parametrize("level", ["text_model.", ""])
def test_clip_has_its_own_names(prefix: str, level: str) -> None:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig())
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert len(paths) == 72
    for path in paths:
        ((_, share),) = places({f"{prefix}{level}{path}.weight": (4, 4)})
        assert share == Share(f"text_encoder.{path}.weight", (range(4),))


def test_what_no_adapter_touches_is_no_module() -> None:
    for key in (
        "first_stage_model.encoder.conv_in.weight",
        f"{NATIVE}nothing.weight",
        "cond_stage_model.logit_scale",
        "x",
    ):
        assert not dict(places({key: (4, 4)}))
