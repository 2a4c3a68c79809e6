"""What was baked is found in the model, and what was not is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loractl.errors import MismatchError
from loractl.formats.contained import residues
from loractl.formats.safefile import read_tensors, write_tensors
from tests.formats.models import NATIVE, native, small_unet, unet_adapter, write_single


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_residue_is_zero_for_the_update_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    base = write_single(tmp_path / "base.safetensors", small_unet(), dtype)
    modules = {f"{path}.weight": low for path, low in list(unet_adapter(small_unet()).modules.items())[:6]}
    tensors = {key: tensor.clone() for key, tensor in read_tensors(base)[0].items()}
    for path, low in modules.items():
        key = NATIVE + native(path.removeprefix("unet."))
        tensors[key] = (tensors[key].float() + low.delta()).to(dtype)
    merged = tmp_path / "merged.safetensors"
    write_tensors(merged, tensors, {})
    assert set(dict(residues(merged, base, modules)).values()) == {0.0}
    double = {path: replace(low, alpha=2 * low.alpha) for path, low in modules.items()}
    wrong = dict(residues(merged, base, double))
    assert all(wrong[path] == pytest.approx(0.5, abs=0.01) for path in modules)
    first, *others = modules
    without = dict(residues(merged, base, {path: modules[path] for path in others}))
    assert [path for path, error in without.items() if error > 0] == [first]


def test_strangers_are_refused(tmp_path: Path) -> None:
    base = write_single(tmp_path / "base.safetensors", small_unet())
    low = next(iter(unet_adapter(small_unet()).modules.values()))
    with pytest.raises(MismatchError, match=r"unet\.nowhere is not in both"):
        list(residues(base, base, {"unet.nowhere": low}))


def test_biases_and_norms_are_held_against_each_other_too(tmp_path: Path) -> None:
    base, merged = write_single(tmp_path / "base.safetensors", small_unet()), tmp_path / "merged.safetensors"
    tensors = {key: tensor.clone() for key, tensor in read_tensors(base)[0].items()}
    tensors[f"{NATIVE}out.0.bias"] += torch.arange(8.0)
    write_tensors(merged, tensors, {})
    (changed,) = (path for path, error in residues(merged, base, {}) if error > 0)
    assert changed == "unet.conv_norm_out.bias"
    assert set(dict(residues(merged, base, {changed: torch.arange(8.0)})).values()) == {0.0}
