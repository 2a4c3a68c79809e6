"""A base in few bits is the rounded base, adapters train on it, and gradients are those of plain arithmetic."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from loractl.errors import DeviceError, InputError, MismatchError
from loractl.families.precision import (
    Keeping,
    compile_network,
    loading,
    merging_note,
    offload_blocks,
    quantized_base,
    refuse_for_one_file,
    set_attention,
    settle,
    store_in_fp8,
)
from loractl.inject.inject import adapter_parameters, collect, inject, load_into, remove
from loractl.inject.layers import weight_shape
from loractl.inject.targets import Target, resolve
from loractl.sample.compose import Branch
from loractl.sample.held import Held, check, make_plan
from loractl.sample.schedule import Use
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.tiny import tiny_flux, tiny_flux_transformer, tiny_sd

FP8 = torch.float8_e4m3fn
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def unet() -> nn.Module:
    denoiser: nn.Module = tiny_sd().unet
    return denoiser.requires_grad_(False)


def transformer() -> nn.Module:
    torch.manual_seed(0)
    denoiser: nn.Module = tiny_flux().transformer
    return denoiser.requires_grad_(False)


def say(denoiser: Any, gain: float = 1.0) -> Tensor:
    """What a denoiser says of pictures that depend on nothing but `gain`."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return gain * torch.randn(shape, generator=generator)

    t = torch.full((2,), 300.0)
    if type(denoiser).__name__ == "UNet2DConditionModel":
        return denoiser(noise(2, 4, 8, 8), t, noise(2, 7, 32)).sample  # type: ignore[no-any-return]
    ids = torch.zeros(4, 3), torch.zeros(7, 3)
    pooled = {"pooled_projections": noise(2, 32), "guidance": torch.ones(2)}
    told = {"encoder_hidden_states": noise(2, 7, 32), "img_ids": ids[0], "txt_ids": ids[1]}
    return denoiser(noise(2, 4, 16), timestep=t / 1000, **told, **pooled).sample  # type: ignore[no-any-return]


def deep() -> nn.Module:
    torch.manual_seed(0)
    return tiny_flux_transformer(num_layers=5, num_single_layers=6).requires_grad_(False)


@pytest.mark.parametrize(("make", "graphs"), [(deep, 4), pytest.param(unet, 1, marks=pytest.mark.slow)])
def test_a_compiled_denoiser_says_and_learns_the_same(make: Callable[[], nn.Module], graphs: int) -> None:
    """Of eleven blocks of Flux two kinds, each with and without gradients from before; a UNet as a whole."""
    denoiser, found = make(), CompileCounterWithBackend("aot_eager")
    parameters = adapt(denoiser)
    torch._dynamo.reset()
    said, learnt = [], []
    for compiled in (False, True):
        if compiled:
            compile_network(denoiser, backend=found)
        said.append(say(denoiser))
        learnt.append(torch.autograd.grad(said[-1].square().mean(), list(parameters.values())))
    torch.testing.assert_close(said[1], said[0], atol=1e-5, rtol=1e-5)
    for gradient, expected in zip(*learnt, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert found.frame_count == graphs


def adapt(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    inject(denoiser, resolve(denoiser, ["attention"], 2), generator=torch.Generator().manual_seed(1), form="branch")
    parameters = adapter_parameters(denoiser)
    with torch.no_grad():
        for name, parameter in parameters.items():  # `up` as after some steps
            if name.endswith(".up"):
                parameter.fill_(0.01)
    return parameters


def gradients(denoiser: nn.Module) -> dict[str, Tensor]:
    parameters = adapt(denoiser)
    say(denoiser).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}


def rounded(denoiser: nn.Module, cast: nn.Module) -> nn.Module:
    """The denoiser with those of its weights rounded that `cast` keeps in fp8."""
    own = dict(denoiser.named_parameters())
    for name, parameter in cast.named_parameters():
        if parameter.dtype == FP8:
            own[name].data = own[name].data.to(FP8).float()
    return denoiser


@pytest.mark.parametrize("make", [unet, transformer])
def test_fp8_is_the_rounded_base_forward_and_backward(make: Callable[[], nn.Module]) -> None:
    base = make()
    store_in_fp8(base, torch.float32)
    kept = [parameter for parameter in base.parameters() if parameter.dtype == FP8]
    assert len(kept) > 20
    plain = rounded(make(), base)
    assert not torch.equal(say(plain), say(make()))
    torch.testing.assert_close(say(base), say(plain), rtol=0, atol=0)
    found, wanted = gradients(base), gradients(plain)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-9)
    assert {parameter.dtype for parameter in kept} == {FP8}  # still, after all that


def test_an_adapter_trains_on_a_base_in_fp8() -> None:
    base: Any = unet()
    settle(base, Keeping(quantize="fp8"), CPU, torch.float32, trains=True)
    base.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(adapt(base).values(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = (say(base) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_an_offloaded_transformer_says_and_learns_the_same() -> None:
    plain, base = transformer(), transformer()
    offload_blocks(base, CPU, trains=True)
    torch.testing.assert_close(say(base), say(plain), rtol=0, atol=0)
    found, wanted = gradients(base), gradients(plain)
    assert found and all(torch.equal(found[name], wanted[name]) for name in wanted)
    shown = transformer()
    offload_blocks(shown, CPU, trains=False)
    with torch.no_grad():
        torch.testing.assert_close(say(shown), say(transformer()), rtol=0, atol=0)


def test_an_offloaded_unet_makes_pictures_and_does_not_train() -> None:
    shown = unet()
    settle(shown, Keeping(offload="blocks"), CPU, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(say(shown), say(unet()), rtol=0, atol=0)
    with pytest.raises(MismatchError, match="trains transformers alone"):
        settle(unet(), Keeping(offload="blocks"), CPU, torch.float32, trains=True)


@pytest.mark.parametrize(("quantize", "extra"), [("nf4", "bnb"), ("int8", "torchao")])
def test_without_its_package_quantizing_says_what_to_install(
    quantize: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loractl.families.precision.find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"loractl\[{extra}\]"):
        loading(quantize, "unet", torch.float32, GPU)


def test_one_file_can_be_kept_in_fp8_alone() -> None:
    refuse_for_one_file("fp8")
    with pytest.raises(InputError, match="can't be loaded in nf4"):
        refuse_for_one_file("nf4")


def test_what_needs_no_package_loads_as_ever() -> None:
    assert loading("none", "unet", torch.float32, GPU) == loading("fp8", "unet", torch.float32, CPU) == {}


def test_nf4_is_refused_without_a_gpu() -> None:
    with pytest.raises(DeviceError, match="needs a GPU"):
        loading("nf4", "unet", torch.float32, CPU)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_adapters_train_on_8_bit_integers(tmp_path: Path) -> None:
    """Gradients are those of the plain base but for the rounding."""
    plain: Any = transformer()
    plain.save_pretrained(tmp_path)
    config = loading("int8", "transformer", torch.float32, CPU)["quantization_config"].quant_mapping["transformer"]
    base = type(plain).from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.float32)
    found, wanted = gradients(base.requires_grad_(False)), gradients(plain)
    largest = max(float(each.abs().max()) for each in wanted.values())
    assert not torch.equal(say(base), say(plain))
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 0.05 * largest


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_nf4_is_asked_for_the_denoiser_alone() -> None:
    config = loading("nf4", "transformer", torch.bfloat16, GPU)["quantization_config"]
    (name,) = config.quant_mapping
    assert name == "transformer"
    assert config.quant_mapping[name].bnb_4bit_compute_dtype == torch.bfloat16


class Packed(nn.Linear):
    """A linear layer in 4 bits, two weights in a byte, as bitsandbytes has them: (out · in / 2, 1)."""

    def __init__(self, out: int, inner: int) -> None:
        super().__init__(inner, out, bias=False)
        codes = torch.randint(256, (out * inner // 2, 1), dtype=torch.uint8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def plain(self) -> Tensor:
        pairs = torch.cat([self.weight // 16, self.weight % 16], dim=1)
        return (pairs.float() / 15 - 0.5).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.plain())


def test_an_adapter_acts_on_packed_weights() -> None:
    """Its shapes are those of the layer, not of the storage; and it comes off as it went on."""
    layer, x = Packed(6, 4), torch.randn(3, 4)
    model = nn.Sequential(layer)
    inject(model, {"0": Target(2, 2.0)}, form="auto", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), layer(x), rtol=0, atol=0)
    adapter_parameters(model)["0.up"].data.normal_()
    ((path, low),) = collect(model).items()
    assert (path, low.shape) == ("0", (6, 4))
    torch.testing.assert_close(model(x), x @ (layer.plain() + low.delta()).T)
    assert weight_shape(model[0]) == (6, 4)  # type: ignore[arg-type]
    remove(model)
    load_into(model, {"0": low}, weight=0.5)
    torch.testing.assert_close(model(x), x @ (layer.plain() + 0.5 * low.delta()).T)
    with pytest.raises(MismatchError, match=r"weight \(6, 4\)"):
        load_into(nn.Sequential(layer), {"0": LowRank(low.up.T, low.down.T, 2.0)})


def test_a_session_acts_on_packed_weights() -> None:
    layer, x = Packed(6, 4), torch.randn(3, 4)
    network = nn.Sequential(layer)
    low = LowRank(torch.randn(2, 4), torch.randn(6, 2), 2.0)
    held = Held(Adapter({"net.0": low}), Use(), 0)
    check(held.adapter, held.use, {"net": network}, low_rank_only=True)
    branch = Branch(network, make_plan("net", network, [held]))
    branch.write([0.25])
    torch.testing.assert_close(network(x), x @ (layer.plain() + 0.25 * low.delta()).T)
    branch.close()
    torch.testing.assert_close(network(x), x @ layer.plain().T)


def test_factors_are_where_the_model_computes() -> None:
    """A layer whose weight waits elsewhere gets them there all the same."""
    model = nn.Sequential(nn.Linear(4, 6))
    inject(model, {"0": Target(2, 2.0)}, device=torch.device("meta"))
    assert {factor.device.type for factor in adapter_parameters(model).values()} == {"meta"}


def test_attention_by_another_backend_is_the_same() -> None:
    base = transformer()
    wanted = say(base)
    set_attention(base, "_native_math")
    torch.testing.assert_close(say(base), wanted)
    with pytest.raises(InputError, match=r'memory\.attention = "fast" can\'t be used'):
        set_attention(base, "fast")
    set_attention(base, "native")


def test_a_file_tells_of_the_base_it_was_trained_on() -> None:
    assert quantized_base({"loractl.job": '{"memory": {"quantize": "nf4"}}'}) == "nf4"
    for plain in ({}, {"loractl.job": "{"}, {"loractl.job": '{"memory": {"quantize": "none"}}'}, {"loractl.job": "[]"}):
        assert quantized_base(plain) is None
    assert "fp8" in merging_note("fp8")
