"""cloneofsimo's numbers become the right modules, for a real file and in both orders, or the file is refused."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from loractl.errors import FormatError, MismatchError
from loractl.formats import inspect, load_adapter, save_adapter
from loractl.formats.cloneofsimo import text_layers, unet_layers
from loractl.formats.safefile import read_tensors
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import are_equal, distance, random_update

DISNEY = Path(__file__).parents[1] / "data/adapters/lora_disney.safetensors"
MODERN = {4: 8, 5: 4, 6: 5, 7: 6, 8: 7}  # legacy place in a transformer block → modern place


def renumbered(places: dict[int, int], blocks: range = range(16)) -> dict[str, Tensor]:
    """The tensors of the real file with the places in some blocks of nine changed."""
    tensors, _ = read_tensors(DISNEY)
    renamed = {}
    for key, tensor in tensors.items():
        if key.startswith("unet:"):
            _, number, part = key.split(":")
            block, place = divmod(int(number), 9)
            key = f"unet:{9 * block + (places.get(place, place) if block in blocks else place)}:{part}"
        renamed[key] = tensor.clone()
    return renamed


@pytest.mark.parametrize(
    ("config", "context"),
    [({"cross_attention_dim": 768}, 768), ({"cross_attention_dim": 1024, "use_linear_projection": True}, 1024)],
    ids=["SD 1.5", "SD 2.1"],
)
def test_the_numbered_layers_are_those_of_the_real_network(config: dict[str, object], context: int) -> None:
    """In the order of its modules, which has been the modern one since diffusers 0.15."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    kinds = ("Attention", "GEGLU", "ResnetBlock2D")
    chosen = {
        f"unet.{path}.{inner}": tuple(layer.weight.shape)
        for path, module in unet.named_modules()
        if type(module).__name__ in kinds
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    expected = dict(unet_layers(320, context, "modern", extended=True))
    assert len(expected) == 224
    assert expected == chosen
    attention = [path for path in chosen if ".resnets." not in path]
    assert attention == [path for path, _ in unet_layers(320, context, "modern")]
    assert [path for path in chosen if ".attn" in path] == [path for path, _ in unet_layers(320, context, "attention")]


def test_the_real_file_is_read_in_legacy_order() -> None:
    found = inspect(DISNEY)
    assert (found["format"], found["unknown"]) == ("cloneofsimo", [])
    assert {name: part["modules"] for name, part in found["components"].items()} == {"unet": 144, "text_encoder": 48}
    assert found["tokens"] == {"text_encoder.<s1>": [1, 768], "text_encoder.<s2>": [1, 768]}
    tensors, _ = read_tensors(DISNEY)
    modules = load_adapter(DISNEY).modules
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert torch.equal(modules[f"{block}.ff.net.0.proj"].up, tensors["unet:4:up"])
    assert torch.equal(modules[f"{block}.attn2.to_q"].up, tensors["unet:5:up"])
    last = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert torch.equal(modules[last].down, tensors["unet:143:down"])
    layer = "text_encoder.encoder.layers.11.self_attn"
    names = [f"{layer}.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj")]
    assert all(torch.equal(modules[name].up, tensors[f"text_encoder:{44 + n}:up"]) for n, name in enumerate(names))


def test_a_copy_in_modern_order_has_the_same_modules(tmp_path: Path) -> None:
    save_file(renumbered(MODERN), tmp_path / "modern")
    assert are_equal(load_adapter(tmp_path / "modern"), load_adapter(DISNEY))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (renumbered({4: 8, 8: 4}), r"unet:4 .*ff\.net\.0\.proj|unet:\d+ changes"),
        (renumbered(MODERN, range(8)), r"unet:\d+ changes a weight .* has .*order"),
        ({key: each for key, each in renumbered({}).items() if key != "unet:7:up"}, "not numbered from 0 in pairs"),
        (
            {key: each for key, each in renumbered({}).items() if not key.startswith("unet:143")},
            "143 modules are no unet",
        ),
    ],
    ids=["swapped", "half modern", "without an up", "one too few"],
)
def test_a_shuffled_copy_is_refused(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "a")
    with pytest.raises(FormatError, match=words):
        load_adapter(tmp_path / "a")


def test_a_file_without_geglu_is_read(tmp_path: Path) -> None:
    tensors = {}
    for number, (_, shape) in enumerate(unet_layers(32, 64, "attention")):
        tensors[f"unet:{number}:up"] = torch.full((shape[0], 2), float(number))
        tensors[f"unet:{number}:down"] = torch.ones(2, shape[1])
    save_file(tensors, tmp_path / "a")
    modules = load_adapter(tmp_path / "a").modules
    assert len(modules) == 128
    assert modules["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"].up[0, 0] == 127


def test_reading_undoes_writing_also_of_a_part(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    places = {**dict(unet_layers(16, 24, "legacy", extended=True)), **dict(text_layers(24, 2))}
    chosen = dict(list(places.items())[::5])
    modules = {
        path: random_update(shape, 1 + n % 3, 0.5 + n, generator) for n, (path, shape) in enumerate(chosen.items())
    }
    adapter = Adapter(modules, {}, {"text_encoder.<s1>": torch.ones(1, 24)})
    save_adapter(tmp_path / "a", adapter, "cloneofsimo", dtype=torch.float32, name="a")
    back = load_adapter(tmp_path / "a")
    assert distance(back, adapter) < 1e-6
    assert all(low.alpha == low.rank for low in back.modules.values())
    assert torch.equal(back.tokens["text_encoder.<s1>"], torch.ones(1, 24))
    numbers = sorted(int(key.split(":")[1]) for key in read_tensors(tmp_path / "a")[0] if key.startswith("unet"))
    assert all(b - a <= 1 for a, b in pairwise(numbers))


def test_the_real_file_is_written_as_it_was(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", load_adapter(DISNEY), "cloneofsimo", dtype=torch.float32, name="a")
    ours, metadata = read_tensors(tmp_path / "a")
    theirs, original = read_tensors(DISNEY)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {key: metadata[key] for key in original if key not in ("unet",)} == {
        key: text for key, text in original.items() if key not in ("unet",)
    }


def test_what_has_no_number_is_not_written(tmp_path: Path) -> None:
    low = random_update((16, 16), 1, 1.0, torch.Generator().manual_seed(0))
    with pytest.raises(MismatchError, match="unet of this adapter is another"):
        save_adapter(tmp_path / "a", Adapter({"unet.down_blocks.9.attn": low}), "cloneofsimo", name="a")
    tokens = {"text_encoder.<s>": torch.ones(2, 8)}
    with pytest.raises(MismatchError, match="tokens of one vector"):
        save_adapter(tmp_path / "a", Adapter({}, {}, tokens), "cloneofsimo", name="a")
