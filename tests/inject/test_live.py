"""What is taken off a pipeline in memory is what it wears, whoever put it on."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, inject_adapter_in_model
from torch import nn

from loractl.errors import JobError, MismatchError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.names import canonical
from loractl.inject.inject import load_into, set_weight
from loractl.inject.live import take
from loractl.inject.targets import injectable
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.formats.adapters import distance, random_update
from tests.tiny import tiny

PAGE = Path(__file__).parents[2] / "docs/files.md"
NETWORKS = ("unet", "text_encoder")


def everywhere(pipeline: Any) -> Adapter:
    """An update for every linear layer and convolution, with ranks 2 to 4 and five alphas."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        canonical(f"{name}.{path}"): tuple(layer.weight.shape)
        for name in NETWORKS
        for path, layer in injectable(getattr(pipeline, name)).items()
    }
    return Adapter(
        {
            path: random_update(shape, 2 + index % 3, 0.5 * (1 + index % 5), generator)
            for index, (path, shape) in enumerate(shapes.items())
        }
    )


def wear(folder: Path, name: str, pipeline: Any, adapter: Adapter) -> None:
    """As diffusers puts it on."""
    save_adapter(folder / f"{name}.safetensors", adapter, "diffusers", dtype=torch.float32, name=name)
    pipeline.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)


def small(config: Any) -> Any:
    """A pipeline of one network whose only layer wears what `config` says, with random numbers."""
    network = nn.Sequential(nn.Conv2d(4, 6, 3))
    inject_adapter_in_model(config, network, "a")
    return SimpleNamespace(components={"unet": network, "scheduler": object()}), network[0]


def test_what_diffusers_put_on(tmp_path: Path) -> None:
    """The ΔW of every layer; the weight of `set_adapters` isn't part of it."""
    pipeline = tiny("sd_v1")
    adapter = everywhere(pipeline)
    wear(tmp_path, "style", pipeline, adapter)
    found = take(pipeline)
    assert found.modules.keys() == adapter.modules.keys()
    layers = {
        canonical(f"{name}.{path}"): layer
        for name in NETWORKS
        for path, layer in getattr(pipeline, name).named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert layers.keys() == found.modules.keys()
    for path, layer in layers.items():
        torch.testing.assert_close(found.modules[path].delta(), layer.get_delta_weight("style"))
    pipeline.set_adapters("style", 0.25)
    assert distance(take(pipeline, "style"), adapter) < 1e-6


def test_what_loractl_put_on() -> None:
    """The weight at run time isn't part of it either, and the copies are nobody else's."""
    pipeline = tiny("sd_v1")
    adapter = everywhere(pipeline)
    for name in NETWORKS:
        load_into(getattr(pipeline, name), adapter.component(name), "mine")
        set_weight(getattr(pipeline, name), 0.5, "mine")
    found = take(pipeline)
    assert distance(found, adapter) == 0
    next(iter(found.modules.values())).down.zero_()
    assert distance(take(pipeline), adapter) == 0


def test_one_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    pipeline = tiny("sd_v1")
    with pytest.raises(JobError, match=r"no adapter: .*distill"):
        take(pipeline)
    one = everywhere(pipeline)
    two = Adapter({path: LowRank(low.down, -low.up, low.alpha) for path, low in [*one.modules.items()][:3]})
    wear(tmp_path, "one", pipeline, one)
    wear(tmp_path, "two", pipeline, two)
    with pytest.raises(JobError, match="adapters one, two: choose one"):
        take(pipeline)
    with pytest.raises(JobError, match="no adapter three, but one, two"):
        take(pipeline, "three")
    assert distance(take(pipeline, "one"), one) < 1e-6 and distance(take(pipeline, "two"), two) < 1e-6


def test_rslora_and_dora() -> None:
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 3, "target_modules": ["0"], "init_lora_weights": False}
    pipeline, layer = small(LoraConfig(use_rslora=True, **settings))
    torch.testing.assert_close(take(pipeline).modules["unet.0"].delta(), layer.get_delta_weight("a"))
    pipeline, layer = small(LoraConfig(use_dora=True, **settings))
    magnitude = take(pipeline).magnitudes["unet.0"]
    assert magnitude.shape == (6, 1, 1, 1)
    assert torch.equal(magnitude.flatten(), layer.lora_magnitude_vector["a"].weight.flatten())


@pytest.mark.parametrize(
    "config", [LoHaConfig(r=2, target_modules=["0"]), LoraConfig(r=2, target_modules=["0"], lora_bias=True)]
)
def test_what_is_not_lora_alone_is_refused(config: Any) -> None:
    with pytest.raises(MismatchError, match=r"unet\.0 wears a as \w+, which isn't LoRA alone"):
        take(small(config)[0])


def test_the_pages_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny("sd_v1")
    adapter = everywhere(pipeline)
    wear(tmp_path, "style", pipeline, adapter)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(lines, {"pipeline": pipeline})
    assert distance(load_adapter(tmp_path / "out/style.safetensors"), adapter) < 2e-3
