"""The rules are sound, say what is known of real kinds of files, and for diffusers agree with what it really does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loractl.formats import FormatName, save_adapter
from loractl.formats.programs import PROGRAMS, Program, Rule, foresee, verdict
from loractl.formats.report import prospects
from loractl.formats.safefile import read_tensors
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import FLAT, example, random_update
from tests.tiny import tiny

DISNEY = Path(__file__).parents[1] / "data/adapters/lora_disney.safetensors"
QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FEED_FORWARD = "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"


def with_out_proj() -> Adapter:
    low = random_update((12, 12), 2, 1.0, torch.Generator().manual_seed(1))
    return Adapter({**example().modules, "text_encoder.encoder.layers.0.self_attn.out_proj": low})


def pretend(name: str, *keys: str) -> tuple[list[tuple[str, int]], str]:
    """Fate and number of each group, and what becomes of the file."""
    groups = foresee(PROGRAMS[name], keys)
    return [(group.fate, len(group.keys)) for group in groups], verdict(PROGRAMS[name], groups)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_rule_has_its_source_and_can_be_reached(name: str) -> None:
    program = PROGRAMS[name]
    assert all(re.compile(rule.pattern) and rule.reason and rule.source for rule in program.rules)
    assert len({rule.pattern for rule in program.rules}) == len(program.rules)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_key_is_told_of_once(name: str, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", example(), "kohya", name="a")
    keys = [*read_tensors(tmp_path / "a")[0], *read_tensors(DISNEY)[0], "strange"]
    groups = foresee(PROGRAMS[name], keys)
    assert sorted(key for group in groups for key in group.keys) == sorted(keys)
    assert [group.keys for group in groups if group.fate == "unknown"] == [["strange"]]


@pytest.mark.parametrize("name", PROGRAMS)
def test_kohya_is_loaded_everywhere(name: str, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", with_out_proj(), "kohya", name="a")
    assert prospects(tmp_path / "a", name)["file"] == "30 loaded"


def test_peft_names_are_for_diffusers(tmp_path: Path) -> None:
    modules = {path: random_update((16, 8), 2, 1.0, torch.Generator()) for path in (QUERY, FEED_FORWARD)}
    save_adapter(tmp_path / "a", Adapter(modules), "diffusers", name="a")
    found = {name: prospects(tmp_path / "a", name)["file"] for name in PROGRAMS}
    partly = "2 ignored, 2 loaded"
    assert found == {"comfyui": partly, "forge": partly, "a1111": "4 ignored", "diffusers": "4 loaded"}


def test_cloneofsimo_is_read_by_none() -> None:
    found = {name: prospects(DISNEY, name)["file"] for name in PROGRAMS}
    assert found["comfyui"] == found["a1111"] == "386 ignored"
    assert found["forge"].startswith("refused as a whole: more than 12")
    assert found["diffusers"] == "refused as a whole"


def test_tokens_in_a_bundle_are_for_a1111() -> None:
    keys = (f"{FLAT}.lora_up.weight", f"{FLAT}.lora_down.weight", "bundle_emb.<s1>.string_to_param.*")
    assert pretend("a1111", *keys)[1] == "3 loaded"
    assert pretend("comfyui", *keys)[1] == pretend("forge", *keys)[1] == "2 loaded, 1 ignored"
    assert pretend("diffusers", *keys) == ([("loaded", 2), ("refused", 1)], "refused as a whole")


def test_patience_is_counted() -> None:
    rules = (Rule("no.*", "ignored", "", ""), Rule("yes", "loaded", "", ""))
    program = Program("1", rules, patience=2)
    for ignored, wanted in ((2, "2 ignored, 1 loaded"), (3, "refused as a whole: more than 2 keys would be ignored")):
        assert verdict(program, foresee(program, ["yes", *(f"no{n}" for n in range(ignored))])) == wanted


def kohya(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    down, up = torch.zeros(2, 16), torch.ones(16, 2)
    plain = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    return {f"{FLAT}.{part}": tensor for part, tensor in {**plain, **parts}.items()}


def text_encoder(*names: str) -> dict[str, Tensor]:
    """kohya's file of these modules of the first layer, all (32, 32)."""
    parts = {"lora_down.weight": torch.zeros(2, 32), "lora_up.weight": torch.ones(32, 2), "alpha": torch.tensor(1.0)}
    layer = "lora_te_text_model_encoder_layers_0_self_attn"
    return {f"{layer}_{name}.{part}": tensor.clone() for name in names for part, tensor in parts.items()}


def mlp() -> dict[str, Tensor]:
    down, up = torch.zeros(2, 32), torch.ones(64, 2)
    flat = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    return {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(1.0)}


LOHA = {f"{FLAT}.hada_w{n}_{x}": torch.ones(16, 16) for n in (1, 2) for x in "ab"}
FILES = {
    "kohya": kohya({}),
    "kohya with DoRA": kohya({"dora_scale": torch.ones(16, 1)}),
    "a bundle": kohya({}) | {"bundle_emb.<s1>.string_to_param.*": torch.ones(1, 32)},
    "with a middle": kohya({"lora_mid.weight": torch.ones(2, 2, 1, 1)}),
    "LoHa": LOHA,
    "cloneofsimo": {"unet:0:up": torch.ones(16, 2), "unet:0:down": torch.ones(2, 16)},
    "q and out_proj": kohya({}) | text_encoder("q_proj", "out_proj"),
    "q alone": kohya({}) | text_encoder("q_proj"),
    "q and mlp": kohya({}) | text_encoder("q_proj") | mlp(),
    "peft": {f"{QUERY}.lora_A.weight": torch.ones(2, 16), f"{QUERY}.lora_B.weight": torch.ones(16, 2)},
}


@pytest.mark.parametrize("kind", FILES)
def test_diffusers_does_what_is_said(kind: str, tmp_path: Path) -> None:
    save_file(FILES[kind], tmp_path / "a.safetensors")
    told = prospects(tmp_path / "a.safetensors", "diffusers")
    assert not any(group["fate"] == "unknown" for group in told["groups"])
    pipeline: Any = tiny("sd_v1")
    if told["file"].startswith("refused"):
        with pytest.raises(ValueError, match=r"correctly renamed|Invalid LoRA checkpoint|infer state dict type"):
            pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    else:
        pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
        parts = (pipeline.unet, pipeline.text_encoder)
        worn = [name for part in parts for name, _ in part.named_parameters() if "lora_" in name]
        loaded = [key for group in told["groups"] if group["fate"] == "loaded" for key in group["keys"]]
        assert len(worn) == sum(not key.endswith(".alpha") for key in loaded) > 0


def test_the_encoders_are_told_apart_and_flux_goes_another_way() -> None:
    """One with out_proj doesn't help the other, and a file of Flux needs none."""
    first, second = (f"lora_te{n}_text_model_encoder_layers_0_self_attn" for n in (1, 2))
    assert pretend("diffusers", f"{first}_out_proj.alpha", f"{second}_out_proj.alpha", f"{second}_q_proj.alpha")[1] == (
        "3 loaded"
    )
    assert pretend("diffusers", f"{first}_out_proj.alpha", f"{second}_q_proj.alpha")[1] == "refused as a whole"
    flux = "lora_unet_double_blocks_0_img_attn_qkv.alpha"
    assert pretend("diffusers", f"{first}_q_proj.alpha", flux)[1] == "2 loaded"


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_what_we_write_is_loaded_by_diffusers_in_all_its_keys(form: FormatName, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", with_out_proj(), form, name="a")
    groups = prospects(tmp_path / "a", "diffusers")["groups"]
    assert {group["fate"] for group in groups} == {"loaded"}
