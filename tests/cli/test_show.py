"""`loractl show`: what an adapter file holds, and what another program makes of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loractl.errors import InputError
from tests.cli.calling import call

ROOT = Path(__file__).parents[2]


def test_show_prints_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs/data/adapters/one.safetensors")
    code, out, _ = call(capsys, "show", file)
    assert code == 0
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if not line.startswith(" ")}
    assert lines["kind"] == ["lora"] and lines["format"] == ["kohya"] and lines["base"] == ["unknown"]
    assert lines["components"] == ["unet:", "modules", "14,", "ranks", "4,", "alphas", "2"]
    assert lines["tokens"] == lines["vectors"] == lines["unknown"] == ["none"]
    data = json.loads(call(capsys, "show", file, "--json")[1])
    assert data["unknown"] == [] and "modules" not in data and len(data["content_hash"]) == 64
    bars = [line.split()[-3:] for line in out.splitlines() if "█" in line]
    assert [(name, float(size)) for name, _, size in bars] == [
        (name, pytest.approx(size, rel=1e-3)) for name, size in data["blocks"].items()
    ]
    longest = max(bars, key=lambda bar: float(bar[2]))
    assert len(longest[1]) == 30 == max(len(bar[1]) for bar in bars)


def test_show_lists_the_modules_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs/data/adapters/one.safetensors")
    data = json.loads(call(capsys, "show", file, "--modules", "--json")[1])
    assert len(data["modules"]) == data["components"]["unet"]["modules"]
    assert sum(each["norm"] ** 2 for each in data["modules"].values()) == pytest.approx(data["norm"] ** 2)
    assert sum(size**2 for size in data["blocks"].values()) == pytest.approx(data["norm"] ** 2)
    path, first = next(iter(data["modules"].items()))
    out = call(capsys, "show", file, "--modules")[1]
    assert f"{path}: rank 4, alpha 2, shape {first['shape'][0]} {first['shape'][1]}, norm " in " ".join(out.split())


def test_show_says_what_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "broken.safetensors")
    paths = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{x}" for x in "qkv"]
    tensors = {f"{path}.lora_{end}.weight": torch.ones(2, 2) for path in paths for end in "AB"}
    tensors[f"{paths[0]}.lora_A.weight"] = torch.tensor([[1.0, float("nan")], [1.0, 1.0]])
    tensors[f"{paths[1]}.lora_B.weight"] = torch.tensor([[float("inf"), 1.0], [1.0, 1.0]])
    save_file(tensors, file)
    code, out, _ = call(capsys, "show", file)
    assert code == 0
    assert f"2 modules are not finite, the first is {min(paths[:2])}: fetch" in " ".join(out.split())
    code, out, _ = call(capsys, "show", file, "--modules", "--json")
    data = json.loads(out, parse_constant=pytest.fail)
    assert (code, data["norm"], data["blocks"]) == (0, None, {"unet.mid_block": None})
    assert [data["modules"][path]["norm"] for path in paths] == [None, None, pytest.approx(4.0)]


def test_show_tells_what_a_program_makes_of_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs/data/adapters/two.safetensors")
    code, out, _ = call(capsys, "show", file, "--for", "a1111")
    assert code == 0
    assert out.splitlines()[0].endswith("28 ignored") and out.splitlines()[1].startswith(
        "ignored: 28 keys; names with dots"
    )
    data = json.loads(call(capsys, "show", file, "--for", "diffusers", "--json")[1])
    assert data["file"] == "28 loaded" and [group["count"] for group in data["groups"]] == [28]
    assert len(data["groups"][0]["keys"]) == 28
    code, _, err = call(capsys, "show", file, "--for", "comfy")
    assert (code, "choose one of comfyui, forge, a1111, diffusers" in err) == (InputError.exit_code, True)
