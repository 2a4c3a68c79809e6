"""LyCORIS' parametrizations have the ΔW that lycoris-lora computes from them; what needs the base is refused."""

from pathlib import Path

import pytest
import torch
from lycoris.functional import general, locon, loha, lokr
from safetensors.torch import save_file
from torch import Tensor

from loractl.errors import FormatError, MismatchError
from loractl.formats import inspect, load_adapter, save_adapter
from loractl.formats.safefile import read_tensors
from tests.formats.adapters import FLAT, QUERY, relative

CONV = "unet.down_blocks.0.resnets.1.conv1"
FLAT_CONV = "lora_unet_down_blocks_0_resnets_1_conv1"
SHAPES = {"linear": (24, 12), "conv": (24, 12, 3, 3)}


def load(tmp_path: Path, parts: dict[str, Tensor], conv: bool) -> Tensor:
    """ΔW of the one module in a file of these parts."""
    flat, path = (FLAT_CONV, CONV) if conv else (FLAT, QUERY)
    save_file({f"{flat}.{part}": tensor.contiguous() for part, tensor in parts.items()}, tmp_path / "a")
    assert inspect(tmp_path / "a")["unknown"] == []
    adapter = load_adapter(tmp_path / "a")
    low = adapter.modules[path]
    assert low.rank <= min(low.shape[0], low.shape[1:].numel())
    return low.to(torch.float64).delta()


def noise(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    return [None if each is None else torch.randn(each.shape, generator=generator) for each in tensors]


def wide(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if each is None else each.double() for each in tensors]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("rank", [2, 5])
def test_loha(tmp_path: Path, kind: str, tucker: bool, rank: int) -> None:
    """Rank 2 gives factors of rank 4; rank 5 has a product of full rank, which is held whole."""
    factors = noise(loha.weight_gen(torch.empty(SHAPES[kind]), rank, tucker))
    if kind == "conv" and not tucker:  # the file has the kernel in the second factors, flattened
        factors[0], factors[2] = (torch.randn(rank, 12, 3, 3), torch.randn(rank, 12, 3, 3))
    wanted = loha.diff_weight(*wide(factors), gamma=3.0 / rank)
    names = ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")
    parts = {f"hada_{name}": each for name, each in zip(names, factors, strict=True) if each is not None}
    found = load(tmp_path, {**parts, "alpha": torch.tensor(3.0)}, kind == "conv")
    assert relative(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize(("rank", "both"), [(1, False), (1, True), (16, False)])
def test_lokr(tmp_path: Path, kind: str, tucker: bool, rank: int, both: bool) -> None:
    shape = torch.empty(SHAPES[kind])
    factors = noise(lokr.weight_gen(shape, rank, tucker and kind == "conv", 4, decompose_both=both))
    full = factors[0] is not None and factors[3] is not None
    wanted = lokr.kron_weight(*wide(factors), scale=1.0 if full else 3.0 / rank)  # as its modules call it
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    parts = {f"lokr_{name}": each for name, each in zip(names, factors, strict=True) if each is not None}
    found = load(tmp_path, {**parts, "alpha": torch.tensor(3.0)}, kind == "conv")
    assert relative(found, wanted.view(SHAPES[kind])) < 1e-6


def test_tucker_convolution(tmp_path: Path) -> None:
    factors = noise(locon.weight_gen(torch.empty(SHAPES["conv"]), 4, tucker=True))
    wanted = locon.diff_weight(*wide(factors), gamma=0.5)
    names = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
    parts = {name: each for name, each in zip(names, factors, strict=True) if each is not None}
    assert relative(load(tmp_path, {**parts, "alpha": torch.tensor(2.0)}, conv=True), wanted) < 1e-6


def test_tucker_factors_of_a_rank_beyond_the_outputs_take_no_more_than_the_update(tmp_path: Path) -> None:
    """As for the last convolution of a UNet, which has four outputs."""
    factors = [torch.randn(shape) for shape in ((9, 12, 1, 1), (4, 9, 1, 1), (9, 9, 3, 3))]
    names = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
    wanted = locon.diff_weight(*wide([*factors]), gamma=0.5)
    found = load(tmp_path, {**dict(zip(names, factors, strict=True)), "alpha": torch.tensor(4.5)}, conv=True)
    assert relative(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", SHAPES)
def test_full_difference(tmp_path: Path, kind: str) -> None:
    delta = torch.randn(SHAPES[kind])
    assert torch.equal(load(tmp_path, {"diff": delta}, kind == "conv").float(), delta)


def test_half_precision_factors_are_multiplied_in_single(tmp_path: Path) -> None:
    factors = [
        torch.randn(24, 2).half(),
        torch.randn(2, 12).half(),
        torch.randn(24, 2).half(),
        torch.randn(2, 12).half(),
    ]
    wanted = (factors[0].double() @ factors[1].double()) * (factors[2].double() @ factors[3].double())
    parts = dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), factors, strict=True))
    assert relative(load(tmp_path, parts, conv=False), wanted) < 1e-6


@pytest.mark.parametrize("shape", [(8, 1), (8,), (1, 12)])
def test_dora_is_kept_with_its_axis_and_said(tmp_path: Path, shape: tuple[int, ...]) -> None:
    parts = {"lora_down.weight": torch.ones(2, 12), "lora_up.weight": torch.ones(8, 2), "dora_scale": torch.ones(shape)}
    save_file({f"{FLAT}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    assert adapter.magnitudes[QUERY].shape == ((1, 12) if shape == (1, 12) else (8, 1))
    assert "DoRA" in adapter.notes[0]
    assert inspect(tmp_path / "a")["notes"] == list(adapter.notes)
    save_adapter(tmp_path / "b", adapter, "kohya", dtype=torch.float32, name="b")
    back = load_adapter(tmp_path / "b")
    assert torch.equal(back.magnitudes[QUERY], adapter.magnitudes[QUERY])


def test_doras_magnitudes_are_those_that_lycoris_divides_by_the_norm(tmp_path: Path) -> None:
    """W' = m · (W + ΔW) / ‖W + ΔW‖ by rows, from the magnitudes and the ΔW that are read."""
    generator = torch.Generator().manual_seed(0)
    base, down, up = (torch.randn(shape, generator=generator) for shape in ((8, 12), (2, 12), (8, 2)))
    magnitude = torch.rand(8, 1, generator=generator) + 1
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    save_file({f"{FLAT}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    changed = base + adapter.modules[QUERY].delta()
    ours = adapter.magnitudes[QUERY] * changed / changed.norm(dim=1, keepdim=True)
    theirs = general.weight_decompose(base + up @ down, magnitude, 1, True)
    torch.testing.assert_close(ours, theirs)


def test_biases_and_norms_are_refused_unless_asked_for(tmp_path: Path) -> None:
    norm = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"
    tensors = {
        f"{FLAT}.diff": torch.ones(8, 8),
        f"{FLAT}.diff_b": torch.ones(8),
        f"{norm}.w_norm": torch.ones(8),
        f"{norm}.b_norm": torch.ones(8),
    }
    save_file(tensors, tmp_path / "a")
    with pytest.raises(FormatError, match="changes 3 biases and norms"):
        load_adapter(tmp_path / "a")
    block = QUERY.removesuffix("attn1.to_q")
    assert inspect(tmp_path / "a")["vectors"] == [
        f"{block}attn1.to_q.bias",
        f"{block}norm1.bias",
        f"{block}norm1.weight",
    ]
    assert torch.equal(load_adapter(tmp_path / "a", whole=True).vectors[f"{block}norm1.weight"], torch.ones(8))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"weight": torch.ones(8), "on_input": torch.tensor(True)}, "IA3 update, which scales"),
        ({"oft_blocks": torch.ones(2, 4, 4), "alpha": torch.ones(1)}, "OFT update, which rotates"),
        ({f"{name}.weight": torch.ones(2, 2) for name in ("a1", "a2", "b1", "b2")}, "GLoRA update, whose first half"),
        ({"hada_w1_a": torch.ones(8, 2)}, "no tensor hada_"),
        ({"lokr_w1": torch.ones(2, 2)}, "no tensor lokr_w2"),
        ({"lokr_w1": torch.ones(2, 2, 2), "lokr_w2": torch.ones(4)}, "no factors of a lokr update"),
        ({"lokr_w1": torch.ones(5000, 5000, dtype=torch.half), "lokr_w2": torch.ones(8, 8)}, "no factors of a lokr"),
        (
            {"hada_w1_a": torch.ones(8, 2), "hada_w1_b": torch.ones(3, 8)}
            | {"hada_w2_a": torch.ones(8, 2), "hada_w2_b": torch.ones(2, 8)},
            "no factors of a loha update",
        ),
    ],
    ids=["IA3", "OFT", "GLoRA", "cut LoHa", "cut LoKr", "odd LoKr", "huge LoKr", "odd LoHa"],
)
def test_what_cannot_be_known_is_refused_by_name(tmp_path: Path, parts: dict[str, Tensor], words: str) -> None:
    save_file({f"{FLAT}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a")
    with pytest.raises(FormatError, match=words) as caught:
        load_adapter(tmp_path / "a")
    assert QUERY in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("weight", "on_input"), "IA3"),
        (("oft_blocks", "rescale", "alpha"), "BOFT"),
        (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "GLoRA"),
        (("oft_blocks", "diff_b"), "OFT"),
    ],
)
def test_what_cannot_be_known_is_shown_key_by_key(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    """Beside an update that is understood, and a bias that is a vector."""
    strange = {f"{FLAT}.{name}": torch.ones(2, 2) for name in names}
    lora = {"lora_down.weight": torch.ones(2, 12, 3, 3), "lora_up.weight": torch.ones(24, 2, 1, 1)}
    lora |= {"diff_b": torch.ones(24)}
    save_file(strange | {f"{FLAT_CONV}.{part}": tensor for part, tensor in lora.items()}, tmp_path / "a")
    found = inspect(tmp_path / "a")
    ((reason, keys),) = found["foreign"].items()
    assert words in reason and keys == sorted(strange)
    assert (found["held"], found["vectors"], found["unknown"]) == ({"lora": 1}, [f"{CONV}.bias"], [])


def test_a_file_of_ia3_alone_is_no_embedding(tmp_path: Path) -> None:
    save_file({f"{FLAT}.weight": torch.ones(8), f"{FLAT}.on_input": torch.tensor(True)}, tmp_path / "a")
    assert inspect(tmp_path / "a")["kind"] == "lora"


@pytest.mark.parametrize("norm_part", ["w_norm", "diff"])
def test_biases_and_norms_are_written_again_as_they_were(tmp_path: Path, norm_part: str) -> None:
    """A norm's weight is a vector by either name."""
    norm = f"{FLAT.removesuffix('attn1_to_q')}norm1"
    tensors = {
        f"{FLAT}.lora_down.weight": torch.randn(2, 8),
        f"{FLAT}.lora_up.weight": torch.randn(8, 2),
        f"{FLAT}.alpha": torch.tensor(2.0),
        f"{FLAT}.diff_b": torch.randn(8),
        f"{norm}.{norm_part}": torch.randn(8),
        f"{norm}.b_norm": torch.randn(8),
    }
    save_file(tensors, tmp_path / "a")
    save_adapter(tmp_path / "b", load_adapter(tmp_path / "a", whole=True), "kohya", dtype=torch.float32, name="b")
    written, _ = read_tensors(tmp_path / "b")
    wanted = dict(tensors)
    wanted[f"{norm}.w_norm"] = wanted.pop(f"{norm}.{norm_part}")
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], wanted[key]) for key in wanted)
    for form in ("diffusers", "cloneofsimo"):
        with pytest.raises(MismatchError, match="no place for differences of biases and norms"):
            save_adapter(tmp_path / form, load_adapter(tmp_path / "a", whole=True), form, name="c")  # type: ignore[arg-type]


def test_a_norm_with_two_differences_is_refused(tmp_path: Path) -> None:
    norm = f"{FLAT.removesuffix('attn1_to_q')}norm1"
    save_file({f"{norm}.diff": torch.ones(8), f"{norm}.w_norm": torch.ones(8)}, tmp_path / "a")
    with pytest.raises(FormatError, match="norm1"):
        load_adapter(tmp_path / "a", whole=True)


def test_a_glora_whose_first_half_is_zero_is_read(tmp_path: Path) -> None:
    up, down = torch.randn(8, 2), torch.randn(2, 8)
    parts = {"a1.weight": torch.zeros(8, 2), "a2.weight": torch.ones(2, 8), "b1.weight": up, "b2.weight": down}
    found = load(tmp_path, {**parts, "alpha": torch.tensor(1.0)}, conv=False)
    torch.testing.assert_close(found.float(), 0.5 * up @ down)
