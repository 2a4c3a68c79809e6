"""What is not a whole adapter is refused in one sentence that names the file, both in reading and in writing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loractl.errors import FormatError, MismatchError, NumericsError
from loractl.formats import inspect, load_adapter, save_adapter
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import FLAT, QUERY, example, replace_tensors


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"unet.lora_alpha": "2"}',
        '{"unet.lora_alpha": null}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.lora_alpha": 1' + "0" * 5000 + "}",
        '{"unet.alpha_pattern": []}',
        '{"unet.alpha_pattern": {"to_q": true}}',
        '{"unet.alpha_pattern": {"(a+)+$": 1}}',
    ],
)
def test_a_config_that_is_not_pefts_is_refused(tmp_path: Path, text: str) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(4, 8), f"{QUERY}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, tmp_path / "a", {"lora_adapter_metadata": text})
    with pytest.raises(FormatError, match=str(tmp_path / "a")):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{FLAT}.lora_up.weight": None}, "no tensor up"),
        ({f"{FLAT}.lora_down.weight": None}, "no tensor down"),
        ({f"{FLAT}.lora_up.weight": torch.ones(8, 9)}, r"up \(8, 9\)"),
        ({f"{FLAT}.lora_up.weight": torch.ones(8, 1, 1, 1)}, r"up \(8, 1, 1, 1\)"),
        ({f"{FLAT}.lora_up.weight": torch.ones(8, 1, dtype=torch.int8)}, "int8"),
        (
            {f"{FLAT}.lora_up.weight": torch.ones(8, 0), f"{FLAT}.lora_down.weight": torch.ones(0, 8)},
            "no factors",
        ),
        (
            {f"{FLAT}.lora_up.weight": torch.tensor(1.0), f"{FLAT}.lora_down.weight": torch.tensor(1.0)},
            "no factors",
        ),
        ({f"{FLAT}.alpha": torch.ones(2)}, "2 numbers for an alpha"),
        ({f"{FLAT}.alpha": torch.tensor(torch.nan)}, "not finite"),
        ({f"{FLAT}.dora_scale": torch.ones(9)}, r"magnitude \(9,\), which fits neither"),
        ({f"{FLAT}.hada_w1_a": torch.ones(8, 1)}, "hada_w1_a beside those of a lora update"),
        ({"lora_unet_mystery.lora_up.weight": torch.ones(8)}, r"first is lora_unet_mystery\.lora_up\.weight"),
        ({"other": torch.ones(8)}, "first is other"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, changes: dict[str, torch.Tensor], words: str) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(path, example(), "kohya", dtype=torch.float32, name="test")
    replace_tensors(path, **changes)
    with pytest.raises(FormatError, match=words) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)


def test_two_names_of_one_module_are_refused(tmp_path: Path) -> None:
    """Older transformers' name and the new one."""
    parts = {"lora_A": torch.ones(1, 4), "lora_B": torch.ones(4, 1)}
    keys = ("text_encoder.encoder.layers.0.mlp.fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1")
    save_file(
        {f"{key}.{part}.weight": tensor.clone() for key in keys for part, tensor in parts.items()}, tmp_path / "a"
    )
    with pytest.raises(FormatError, match=r"second down of the module text_encoder\.encoder\.layers\.0\.mlp\.fc1"):
        load_adapter(tmp_path / "a")


def test_what_kohya_cannot_name_is_not_written(tmp_path: Path) -> None:
    update = example().modules[QUERY]
    for paths in (["transformer.blocks.0.to_q"], ["unet.a_b", "unet.a.b"], ["vae.conv_in"]):
        with pytest.raises(MismatchError, match="diffusers format"):
            save_adapter(tmp_path / "a", Adapter(dict.fromkeys(paths, update)), "kohya", name="test")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_what_is_not_finite_is_not_written(tmp_path: Path, form: str) -> None:
    adapter = example()
    adapter.modules[QUERY].up[0] = 1e5  # more than fp16 holds
    with pytest.raises(NumericsError, match="float16"):
        save_adapter(tmp_path / "a", adapter, form, name="test")
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_is_named(tmp_path: Path) -> None:
    key = "model.diffusion_model.out.2.weight"
    save_file({key: torch.ones(2)}, tmp_path / "a")
    found = inspect(tmp_path / "a")
    assert (found["format"], found["kind"], found["unknown"]) == ("checkpoint", "checkpoint", [key])
    with pytest.raises(FormatError, match="is a model, not an adapter"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    "name",
    [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.mid_block.resnets.0.conv1",
        "transformer_blocks.0.attn.to_q",
        "double_blocks.0.img_attn.qkv",
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv",
        "text_model.encoder.layers.0.self_attn.q_proj",
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.mid_block.resnets.0.conv1",
    ],
)
def test_a_models_weights_are_no_adapter(tmp_path: Path, name: str) -> None:
    save_file({f"{name}.{part}": torch.ones(8) for part in ("weight", "bias")}, tmp_path / "a")
    found = inspect(tmp_path / "a")
    assert (found["kind"], found["foreign"]) == ("checkpoint", {})
    with pytest.raises(FormatError, match="is a model, not an adapter"):
        load_adapter(tmp_path / "a")


def test_a_models_weight_beside_an_adapter_is_not_understood(tmp_path: Path) -> None:
    names = {"lora_A.weight": torch.ones(4, 8), "lora_B.weight": torch.ones(8, 4), "weight": torch.ones(8, 8)}
    save_file({f"{QUERY}.{end}": tensor for end, tensor in names.items()}, tmp_path / "a")
    found = inspect(tmp_path / "a")
    assert (found["held"], found["foreign"], found["unknown"]) == ({"lora": 1}, {}, [f"{QUERY}.weight"])


def test_ia3_of_peft_is_still_named(tmp_path: Path) -> None:
    path = f"base_model.model.{QUERY.removeprefix('unet.')}"
    save_file({f"{path}.ia3_l": torch.ones(8, 1)}, tmp_path / "a")
    with pytest.raises(FormatError, match="an IA3 update"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("tensors", [{}, {"weight": torch.ones(1)}])
def test_what_is_no_adapter_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "a")
    with pytest.raises(FormatError, match="no adapter format"):
        load_adapter(tmp_path / "a")
