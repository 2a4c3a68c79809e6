"""Names of other tools mean the same modules as diffusers' names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loractl.errors import FormatError
from loractl.formats import inspect, load_adapter
from loractl.formats.safefile import read_tensors

DATA = Path(__file__).parents[1] / "data/adapters"
BLOCK = "transformer.transformer_blocks.3"
SINGLE = "transformer.single_transformer_blocks.5"
UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
QUERY = "attn1.to_q"
CLIP = "encoder.layers.0.self_attn.q_proj"
T5 = "encoder.block.0.layer.0.SelfAttention.q"
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
IN_IMAGE, IN_SINGLE = ([f"{block}.{name}" for name in QKV] for block in (BLOCK, SINGLE))
AB, KOHYA, OLD = ".lora_{A,B}.weight", ".lora_{down,up}.weight", ".{down,up}.weight"
FLAT_CLIP = "text_model_encoder_layers_0_self_attn_q_proj"
FLAT_QUERY = "transformer_blocks_0_attn1_to_q"
# Format, the file's name of a module, the ends of its factors' keys, its rows, and the modules that it means.
ROWS = [
    ("ComfyUI", "diffusion_model.double_blocks.3.img_attn.qkv", AB, 24, IN_IMAGE),
    ("ComfyUI", "diffusion_model.single_blocks.5.linear2", KOHYA, 8, [f"{SINGLE}.proj_out"]),
    ("ComfyUI", "double_blocks.3.txt_mlp.0", AB, 32, [f"{BLOCK}.ff_context.net.0.proj"]),
    ("ComfyUI", "diffusion_model.transformer_blocks.3.attn.to_q", AB, 8, IN_IMAGE[:1]),
    ("ComfyUI", "diffusion_model.joint_blocks.3.context_block.attn.proj", AB, 8, [f"{BLOCK}.attn.to_add_out"]),
    ("ComfyUI", f"diffusion_model.input_blocks.4.1.transformer_blocks.0.{QUERY}", AB, 8, [f"{UNET}.{QUERY}"]),
    ("ComfyUI", f"text_encoders.clip_g.transformer.text_model.{CLIP}", AB, 8, [f"text_encoder_2.{CLIP}"]),
    ("XLabs", "double_blocks.3.processor.qkv_lora1", OLD, 24, IN_IMAGE),
    ("XLabs", "double_blocks.3.processor.proj_lora2", OLD, 8, [f"{BLOCK}.attn.to_add_out"]),
    ("XLabs", "single_blocks.5.processor.qkv_lora", OLD, 24, IN_SINGLE),
    ("OneTrainer", "lora_transformer_transformer_blocks_3_attn_to_q", KOHYA, 8, IN_IMAGE[:1]),
    ("OneTrainer", "lora_transformer_single_transformer_blocks_5_proj_mlp", KOHYA, 32, [f"{SINGLE}.proj_mlp"]),
    ("kohya", "lora_unet_double_blocks_3_img_attn_qkv", KOHYA, 24, IN_IMAGE),
    ("kohya", "lora_unet_joint_blocks_3_x_block_mlp_fc1", KOHYA, 32, [f"{BLOCK}.ff.net.0.proj"]),
    ("kohya", f"lora_unet_input_blocks_4_1_{FLAT_QUERY}", KOHYA, 8, [f"{UNET}.{QUERY}"]),
    ("kohya", f"lycoris_down_blocks_1_attentions_0_{FLAT_QUERY}", KOHYA, 8, [f"{UNET}.{QUERY}"]),
    ("kohya", f"lora_te2_{FLAT_CLIP}", KOHYA, 8, [f"text_encoder_2.{CLIP}"]),
    ("kohya", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", KOHYA, 8, [f"text_encoder_3.{T5}"]),
    ("peft", f"base_model.model.{UNET.removeprefix('unet.')}.{QUERY}", AB, 8, [f"{UNET}.{QUERY}"]),
    ("peft", f"base_model.model.text_model.{CLIP}", ".lora_{A,B}.default.weight", 8, [f"text_encoder.{CLIP}"]),
    ("diffusers", f"{BLOCK}.attn.to_q", AB, 8, IN_IMAGE[:1]),
    ("diffusers", f"{UNET}.{QUERY}.lora", OLD, 8, [f"{UNET}.{QUERY}"]),
    ("diffusers", f"text_encoder.text_model.{CLIP}.lora_linear_layer", OLD, 8, [f"text_encoder.{CLIP}"]),
    ("old diffusers", f"{UNET}.attn1.processor.to_out_lora", OLD, 8, [f"{UNET}.attn1.to_out.0"]),
    ("old diffusers", "text_encoder.encoder.layers.0.self_attn.to_q_lora", OLD, 8, [f"text_encoder.{CLIP}"]),
]


def file_of(tmp_path: Path, name: str, ends: str, rows: int) -> tuple[Path, Tensor]:
    """A file with one module, and its ΔW."""
    before, parts, after = ends.replace("}", "{").split("{")
    down, up = (f"{name}{before}{part}{after}" for part in parts.split(","))
    generator = torch.Generator().manual_seed(0)
    tensors = {down: torch.randn(3, 8, generator=generator), up: torch.randn(rows, 3, generator=generator)}
    save_file(tensors, tmp_path / "a")
    return tmp_path / "a", tensors[up] @ tensors[down]


@pytest.mark.parametrize(("form", "name", "ends", "rows", "paths"), ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
def test_a_name_means_its_modules(tmp_path: Path, form: str, name: str, ends: str, rows: int, paths: list[str]) -> None:
    path, wanted = file_of(tmp_path, name, ends, rows)
    found = inspect(path)
    assert (found["format"], found["unknown"]) == (form, [])
    modules = load_adapter(path).modules
    assert sorted(modules) == sorted(paths)
    torch.testing.assert_close(torch.cat([modules[each].delta() for each in paths]), wanted)


def test_fluxs_t5_is_its_second_text_encoder(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, "lora_unet_double_blocks_0_img_mlp_0", KOHYA, 32)
    tensors, _ = read_tensors(path)
    t5 = "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0"
    more = {f"{t5}.lora_down.weight": torch.ones(1, 4), f"{t5}.lora_up.weight": torch.ones(4, 1)}
    save_file({key: each.clone() for key, each in tensors.items()} | more, path)
    assert "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wi_0" in load_adapter(path).modules


def test_a_file_of_diffusers_before_peft_is_read() -> None:
    """A part of a real file."""
    path = DATA / "catundchat_first_block.safetensors"
    assert inspect(path)["unknown"] == []
    adapter = load_adapter(path)
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    names = [f"{block}.attn{n}.{each}" for n in (1, 2) for each in ("to_k", "to_out.0", "to_q", "to_v")]
    assert list(adapter.modules) == names
    tensors, _ = read_tensors(path)
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight"
    assert torch.equal(adapter.modules[names[1]].up, tensors[key])


def test_a_file_whose_text_encoder_has_newer_keys_is_read(tmp_path: Path) -> None:
    """As diffusers 0.18 to 0.21 saved a DreamBooth LoRA with text encoder."""
    keys = (f"{UNET}.attn1.processor.to_q_lora", f"text_encoder.text_model.{CLIP}.lora_linear_layer")
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    save_file(
        {f"{key}.{part}.weight": each.clone() for key in keys for part, each in (("down", down), ("up", up))},
        tmp_path / "a",
    )
    modules = load_adapter(tmp_path / "a").modules
    assert modules.keys() == {f"{UNET}.{QUERY}", f"text_encoder.{CLIP}"}
    assert all(torch.equal(low.delta(), up @ down) for low in modules.values())


def test_pefts_own_file_says_its_alpha_or_is_noted(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, "base_model.model.mid_block.attentions.0.proj_in", AB, 8)
    assert "alpha = rank" in load_adapter(path).notes[0]
    tensors, _ = read_tensors(path)
    save_file(
        {key: each.clone() for key, each in tensors.items()}, path, {"lora_adapter_metadata": '{"lora_alpha": 6}'}
    )
    adapter = load_adapter(path)
    assert adapter.modules["unet.mid_block.attentions.0.proj_in"].alpha == 6
    assert adapter.notes == ()


@pytest.mark.parametrize(
    "key", ["diffusion_model.mystery.lora_A.weight", "double_blocks.0.processor.qkv_lora.down.weight"]
)
def test_what_is_not_understood_is_listed(tmp_path: Path, key: str) -> None:
    known = "diffusion_model.double_blocks.0.img_mlp.2" if "diffusion" in key else "single_blocks.0.processor.proj_lora"
    ends = ("lora_A.weight", "lora_B.weight") if "diffusion" in key else ("down.weight", "up.weight")
    factors = (torch.ones(1, 4), torch.ones(4, 1))
    save_file(
        {f"{known}.{end}": each for end, each in zip(ends, factors, strict=True)} | {key: torch.ones(1)}, tmp_path / "a"
    )
    assert inspect(tmp_path / "a")["unknown"] == [key]
    with pytest.raises(FormatError, match="1 of its keys are not understood"):
        load_adapter(tmp_path / "a")


def test_a_module_twice_is_refused(tmp_path: Path) -> None:
    names = ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_transformer_blocks_0_attn_to_q")
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 4) for name in names}
    tensors |= {f"{names[0]}.lora_up.weight": torch.ones(12, 1), f"{names[1]}.lora_up.weight": torch.ones(4, 1)}
    save_file(tensors, tmp_path / "a")
    with pytest.raises(FormatError, match="there twice"):
        load_adapter(tmp_path / "a")
