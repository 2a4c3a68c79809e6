"""Changes that are no low rank take part exactly: whole differences, biases, norms, and DoRA as peft and LyCORIS do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.functional.general import weight_decompose
from lycoris.wrapper import LycorisNetwork
from safetensors.torch import save_file
from torch import Tensor

from loractl.errors import JobError, MismatchError
from loractl.formats import save_adapter
from loractl.sample.schedule import Use
from loractl.sample.session import Session
from loractl.sample.stack import Change, Stack
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank, dense
from tests.sample.models import PROMPT, SPIED, outputs, random_adapter, tiny_model

CPU = torch.device("cpu")
SHAPES = {"linear": (6, 5), "convolution": (6, 4, 3, 3)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def update(shape: tuple[int, ...], rank: int = 2) -> LowRank:
    return LowRank(noise(rank, *shape[1:], seed=1), noise(shape[0], rank, *[1] * (len(shape) - 2), seed=2), 1.0)


def total(weight: Tensor, change: Change, strength: float) -> Tensor:
    """W + strength · ΔW."""
    stack = Stack.of([(0, change)], CPU)
    out = torch.full_like(weight, torch.nan)
    stack.add_to(weight, [strength], stack.weights([strength]), out)
    return out


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("by_output", [True, False])
def test_dora_is_lycoris_at_1_and_linear_in_its_weight(shape: tuple[int, ...], by_output: bool) -> None:
    weight, low = noise(*shape), update(shape)
    size = [1] * len(shape)
    size[not by_output] = shape[not by_output]
    magnitude = torch.rand(size) + 0.5
    change = Change.dora(low, magnitude, weight)
    theirs = weight_decompose(weight + low.delta(), magnitude, 1, by_output)
    torch.testing.assert_close(total(weight, change, 1.0), theirs, atol=1e-6, rtol=1e-5)
    for strength in (-0.5, 0.3):
        torch.testing.assert_close(total(weight, change, strength), weight + strength * (theirs - weight))
    assert torch.equal(total(weight, change, 0.0), weight)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (5, 6), (40, 4, 3, 3)])
def test_a_whole_difference_is_kept_as_it_is(shape: tuple[int, ...]) -> None:
    delta, weight = noise(*shape, seed=3), noise(*shape)
    change = Change.of(dense(delta))
    assert change.low is None and torch.equal(change.whole, delta)  # type: ignore[arg-type]
    torch.testing.assert_close(total(weight, change, -0.5), weight - 0.5 * delta)
    assert Change.of(update(shape)).whole is None


def test_what_is_composed_is_laid_out_like_the_weight() -> None:
    weight = noise(6, 4, 3, 3).to(memory_format=torch.channels_last)
    made = total(weight, Change.of(update((6, 4, 3, 3))), 1.0)
    assert made.stride() == weight.stride()
    torch.testing.assert_close(made, weight + update((6, 4, 3, 3)).delta())


def dora(seed: int = 0) -> Adapter:
    """Of the tiny model's attention and a convolution with as many inputs as outputs, magnitudes and all."""
    model = tiny_model()
    square = "unet.mid_block.resnets.0.conv1"
    modules = {**random_adapter(model, seed).modules, square: update((32, 32, 3, 3))}
    generator = torch.Generator().manual_seed(seed)
    weights = {path: model.denoiser.get_parameter(f"{path.removeprefix('unet.')}.weight") for path in modules}
    magnitudes = {}
    for path, weight in weights.items():
        lengths = weight.norm(p=2, dim=tuple(range(1, weight.ndim)), keepdim=True)
        magnitudes[path] = lengths * (0.7 + 0.6 * torch.rand(lengths.shape, generator=generator))
    return Adapter(modules, magnitudes=magnitudes)


def test_dora_is_what_diffusers_and_peft_make_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "dora.safetensors"
    save_adapter(file, dora(), "diffusers", dtype=torch.float32, name="dora")
    ours, theirs = tiny_model(), tiny_model()
    theirs.pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    with Session(ours) as session, Session(theirs) as reference:
        plain = outputs(ours, lambda: session.generate(PROMPT, steps=2))
        session.add("dora", file)
        found = outputs(ours, lambda: session.generate(PROMPT, steps=2))
        assert session.runs[-1].engine == "composed"
        wanted = outputs(theirs, lambda: reference.generate(PROMPT, steps=2))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    without = tiny_model()
    with Session(without) as session:
        session.add("lora", Adapter(dora().modules))
        lora = outputs(without, lambda: session.generate(PROMPT, steps=2))
    assert min(float((other - wanted).abs().max()) for other in (plain, lora)) > 0.01


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A file of LyCORIS that changes every weight, bias and norm of the denoiser, and what the denoiser then says."""
    model = tiny_model()
    LycorisNetwork.apply_preset({"enable_conv": True, "unet_target_module": [], "unet_target_name": [".*"]})
    network: Any = LycorisNetwork(model.denoiser, network_module="full", train_norm=True)
    network.apply_to()
    with torch.no_grad():
        for number, each in enumerate(network.parameters()):
            each += 0.02 * noise(*each.shape, seed=number)
    named = {key.replace("lycoris_", "lora_unet_", 1): tensor for key, tensor in network.state_dict().items()}
    file = tmp_path_factory.mktemp("lycoris") / "full.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in named.items()}, file)
    with Session(model) as session:
        return file, outputs(model, lambda: session.generate(PROMPT, steps=2))


def test_whole_differences_biases_and_norms_are_as_lycoris_has_them(whole: tuple[Path, Tensor]) -> None:
    file, wanted = whole
    model = tiny_model()
    before = {key: tensor.clone() for key, tensor in model.denoiser.state_dict().items()}
    with Session(model) as session:
        plain = outputs(model, lambda: session.generate(PROMPT, steps=2))
        adapter = session.add("full", file)
        assert {path.rpartition(".")[2] for path in adapter.vectors} == {"bias", "weight"}
        found = outputs(model, lambda: session.generate(PROMPT, steps=2))
        assert session.runs[-1].engine == "composed"
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - plain).abs().max() > 0.01
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.denoiser.state_dict().items())


def test_a_pattern_holds_for_vectors_too() -> None:
    model = tiny_model()
    with Session(model) as session:
        session.add("a", Adapter({}, vectors={"unet.conv_in.bias": noise(16)}), Use(layers={"conv_in": 0.0}))
        session.generate(PROMPT, steps=1)
        assert session.compositions == 0 and session.runs[0].strengths == [{"a": 1.0, "a conv_in": 0.0}]


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        (dora, r"DoRA's magnitudes of unet\."),
        (lambda: Adapter({}, vectors={"unet.conv_in.bias": torch.ones(16)}), "a difference of unet.conv_in.bias"),
        (lambda: Adapter({f"unet.{SPIED}": dense(torch.ones(32, 32))}), f"a difference of full rank of unet.{SPIED}"),
    ],
)
def test_a_branch_refuses_what_is_no_low_rank(adapter: Any, why: str) -> None:
    with (
        Session(tiny_model(), "branch") as session,
        pytest.raises(JobError, match=f"no place for {why}.*auto or compo"),
    ):
        session.add("a", adapter())


@pytest.mark.parametrize(
    ("vectors", "why"),
    [
        ({"unet.conv_in.bias": torch.ones(3)}, r"conv_in.bias: the adapter's difference \(3,\) does not fit .*\(16,\)"),
        ({f"unet.{SPIED}.bias": torch.ones(32)}, "has no parameter mid_block.*to_q.bias"),
        ({"unet.nowhere.bias": torch.ones(3)}, "has no parameter nowhere.bias"),
        ({"vae.conv.bias": torch.ones(3)}, "the adapter adapts vae, which this model does not have"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(vectors: dict[str, Tensor], why: str) -> None:
    with Session(tiny_model()) as session, pytest.raises(MismatchError, match=why):
        session.add("a", Adapter({}, vectors=vectors))


def test_an_adapter_that_is_no_low_rank_may_come_during_a_run_of_branches() -> None:
    model = tiny_model()
    with Session(model, cache_bytes=0) as session:
        session.add("lora", random_adapter(model))

        def arrive(done: int, _: int) -> None:
            if done == 1:
                session.add("dora", dora())

        session.generate(PROMPT, steps=2, on_step=arrive)
        assert session.runs[0].engine == "branch" and session.compositions == 1
        found = outputs(model, lambda: session.generate(PROMPT, steps=1))
    with Session(model) as session:
        session.add("lora", random_adapter(model))
        session.add("dora", dora())
        torch.testing.assert_close(found, outputs(model, lambda: session.generate(PROMPT, steps=1)))
