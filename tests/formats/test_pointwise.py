"""LyCORIS writes the update of a 1×1 convolution flattened, as that of a linear layer; it goes wherever it belongs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file
from torch import Tensor, nn

from loractl.errors import MismatchError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.checkpoint import model_weights
from loractl.inject.inject import injected, load_into
from loractl.sample.stack import Stack, changes
from loractl.tensors.adapter import Adapter
from loractl.tensors.algebra import align, combine
from loractl.tensors.lowrank import LowRank
from tests.formats.models import small_unet, write_single
from tests.methods.baking import job, run
from tests.tensors.updates import random_update

POINT = "mid_block.attentions.0.proj_in"
PATH, FLAT = f"unet.{POINT}", "lora_unet_mid_block_attentions_0_proj_in"
KINDS = {"loha": (LohaModule, 2, {}), "lokr": (LokrModule, 1, {"factor": 4})}


def convolution() -> nn.Module:
    return small_unet().get_submodule(POINT)


def written(path: Path, kind: str, dora: bool = False) -> Any:
    """LyCORIS's own module of the layer, with numbers; its tensors are in the file."""
    made, rank, settings = KINDS[kind]
    module: Any = made(FLAT, convolution(), 1.0, rank, rank, weight_decompose=dora, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.rand(each.shape, generator=generator))
    save_file({f"{FLAT}.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    return module


def delta(module: Any) -> Tensor:
    weight: Tensor = module.get_diff_weight(shape=(16, 16, 1, 1))[0]
    return weight.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_injected_baked_proved_and_merged(tmp_path: Path, kind: str) -> None:
    from loractl_diff import start
    from loractl_diff.command import diff

    file, unet = tmp_path / "a.safetensors", small_unet()
    wanted, before = delta(written(file, kind)), unet.get_parameter(f"{POINT}.weight").detach().clone()
    modules = load_adapter(file).modules
    assert modules[PATH].shape == (16, 16), "or the file says the kernel, and there is nothing to prove"
    load_into(unet, {POINT: modules[PATH]})
    torch.testing.assert_close(injected(unet)[POINT].delta().detach(), wanted)
    model, out = write_single(tmp_path / "model.safetensors", small_unet()), tmp_path / "out.safetensors"
    run(job(model, out, (file, 0.5)))
    torch.testing.assert_close(model_weights(out)[PATH].read(), before + 0.5 * wanted)
    proof = start(diff(file, merged=out, base=model, weight=0.5), lambda _: None)
    assert proof.numbers == {"largest_error": 0, "modules": 1, "changed_elsewhere": 0}
    plain = random_update((16, 16, 1, 1), 2, 1.0, 0)
    for order in ([modules, {PATH: plain}], [{PATH: plain}, modules]):
        (both,) = combine(order, [1.0, 1.0]).values()
        torch.testing.assert_close(both.delta(), wanted + plain.delta(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dora_is_what_lycoris_makes_of_the_weight(tmp_path: Path, kind: str) -> None:
    module = written(tmp_path / "a.safetensors", kind, dora=True)
    adapter, unet = load_adapter(tmp_path / "a.safetensors"), small_unet()
    weight = unet.get_parameter(f"{POINT}.weight").detach()
    (change,) = changes(adapter, "unet", unet).values()
    stack = Stack.of([(0, change)], torch.device("cpu"))
    wanted = module.apply_weight_decompose(weight + delta(module)).detach()
    stack.add_to(weight, [1.0], stack.weights([1.0]), out := torch.empty_like(weight))
    torch.testing.assert_close(out, wanted)


def test_diffusers_loads_what_is_written_of_it(tmp_path: Path) -> None:
    """Where the base is known: other models have linear layers at these paths, which a matrix fits."""
    wanted = delta(written(tmp_path / "a.safetensors", "loha"))
    adapter = load_adapter(tmp_path / "a.safetensors")
    for version, shape in (("sd_v1", (16, 16, 1, 1)), ("sd_v2", (16, 16))):
        known = replace(adapter, metadata={"ss_base_model_version": version}, magnitudes={PATH: torch.ones(16, 1)})
        save_adapter(tmp_path / version, known, "kohya", dtype=torch.float32, name="b")
        found = load_adapter(tmp_path / version)
        assert found.modules[PATH].shape == shape
        assert found.magnitudes[PATH].shape == (16, *(1 for _ in shape[1:]))
    first = replace(adapter, metadata={"ss_base_model_version": "sd_v1"})
    save_adapter(tmp_path / "d.safetensors", first, "diffusers", dtype=torch.float32, name="d")
    unet = small_unet()
    unet.load_lora_adapter(str(tmp_path), prefix="unet", weight_name="d.safetensors", adapter_name="a")
    layer: Any = unet.get_submodule(POINT)
    torch.testing.assert_close(layer.get_delta_weight("a").detach(), wanted)


def test_a_linear_layer_takes_the_update_of_a_convolution(tmp_path: Path) -> None:
    low = random_update((12, 12, 1, 1), 2, 1.0, 0)
    model = nn.Sequential(nn.Linear(12, 12))
    load_into(model, {"0": low})
    torch.testing.assert_close(cast(Any, model[0]).delta().detach(), low.delta().flatten(1))
    save_adapter(tmp_path / "a", Adapter({PATH: low.fitted((12, 12))}), "kohya", dtype=torch.float32, name="a")
    assert load_adapter(tmp_path / "a").modules[PATH].fitted((12, 12, 1, 1)).up.shape == (12, 2, 1, 1)


def test_what_differs_by_more_than_ones_stays_as_it_is() -> None:
    low: LowRank = random_update((12, 18), 2, 1.0, 0)
    for shape in ((12, 2, 3, 3), (12, 18), (18, 12, 1, 1), (12, 18, 1, 3), (12,)):
        assert low.fitted(shape) is low
    with pytest.raises(MismatchError, match=r"x is \(12, 18\) in one adapter and \(12, 2, 3, 3\)"):
        align([{"x": low}, {"x": random_update((12, 2, 3, 3), 2, 1.0, 0)}])
