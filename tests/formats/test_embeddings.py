"""Learned embeddings in every form, and pickles, which are refused by default and never run code."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loractl.errors import FormatError, MismatchError
from loractl.formats import inspect, load_adapter, save_adapter
from loractl.formats.safefile import read_tensors
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import are_equal, distance, example

DATA = Path(__file__).parents[1] / "data/adapters"
L, G = torch.arange(1536.0).view(2, 768), torch.arange(2560.0).view(2, 1280)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    ("name", "token", "count"),
    [
        ("EasyNegative.safetensors", "EasyNegative", 8),
        ("bad-artist.pt", "bad-artist", 2),
        ("fastai_learned_embeds.bin", "<birb-style>", 1),
    ],
)
def test_real_embeddings_are_read(name: str, token: str, count: int) -> None:
    found = inspect(DATA / name, allow_pickle=True)
    assert (found["kind"], found["unknown"]) == ("embedding", [])
    assert found["tokens"] == {f"text_encoder.{token}": [count, 768]}
    assert load_adapter(DATA / name, allow_pickle=True).tokens[f"text_encoder.{token}"].isfinite().all()


def test_those_of_two_encoders_are_read(tmp_path: Path) -> None:
    save_file({"clip_l": L, "clip_g": G}, tmp_path / "cat.safetensors")
    tokens = load_adapter(tmp_path / "cat.safetensors").tokens
    assert torch.equal(tokens["text_encoder.cat"], L)
    assert torch.equal(tokens["text_encoder_2.cat"], G)


@pytest.mark.parametrize(
    ("names", "components"),
    [
        (("clip_l", "clip_g", "t5"), ("text_encoder", "text_encoder_2", "text_encoder_3")),
        (("clip_l", "t5"), ("text_encoder", "text_encoder_2")),
        (("t5",), ("text_encoder_2",)),
    ],
)
@pytest.mark.parametrize("form", ["a1111", "kohya"])
def test_t5_is_the_second_encoder_of_flux_and_the_third_of_stable_diffusion_3(
    tmp_path: Path, form: str, names: tuple[str, ...], components: tuple[str, ...]
) -> None:
    """By themselves and in a bundle without modules."""
    rows = {"clip_l": L, "clip_g": G, "t5": torch.ones(1, 4096)}
    tokens = {f"{component}.cat": rows[name] for component, name in zip(components, names, strict=True)}
    save_adapter(tmp_path / "cat", Adapter({}, {}, tokens), form, dtype=torch.float32, name="cat")
    start = "bundle_emb.cat." if form == "kohya" else ""
    assert read_tensors(tmp_path / "cat")[0].keys() == {f"{start}{name}" for name in names}
    found = inspect(tmp_path / "cat")
    assert (found["kind"], found["unknown"]) == ("embedding", [])
    back = load_adapter(tmp_path / "cat").tokens
    assert back.keys() == tokens.keys()
    assert all(torch.equal(back[path], tokens[path]) for path in tokens)


@pytest.mark.parametrize(
    ("module", "t5"),
    [
        ("lora_transformer_single_transformer_blocks_0_attn_to_q", "text_encoder_2"),
        ("lora_transformer_transformer_blocks_0_attn_to_q", "text_encoder_3"),
        ("lora_unet_double_blocks_0_img_attn_proj", "text_encoder_2"),
        ("lora_unet_joint_blocks_0_x_block_attn_proj", "text_encoder_3"),
    ],
)
def test_a_bundles_t5_is_that_of_its_modules(tmp_path: Path, module: str, t5: str) -> None:
    te3 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    ends = ("lora_down.weight", "lora_up.weight")
    tensors = {f"{name}.{end}": torch.eye(4) for name in (module, te3) for end in ends}
    save_file(tensors | {"bundle_emb.cat.t5": torch.ones(1, 4096)}, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    assert list(adapter.tokens) == [f"{t5}.cat"]
    assert f"{t5}.encoder.block.0.layer.0.SelfAttention.q" in adapter.modules


@pytest.mark.parametrize("both", [False, True])
def test_a_bundle_comes_back_with_its_tokens(tmp_path: Path, both: bool) -> None:
    tokens = {"text_encoder.<s1>": L} | ({"text_encoder_2.<s1>": G} if both else {})
    adapter = Adapter(example((2.0,)).modules, {}, tokens)
    save_adapter(tmp_path / "a", adapter, "kohya", dtype=torch.float32, name="a")
    keys = {key for key in read_tensors(tmp_path / "a")[0] if key.startswith("bundle_emb")}
    assert keys == {f"bundle_emb.<s1>.{end}" for end in (("clip_l", "clip_g") if both else ("string_to_param.*",))}
    back = load_adapter(tmp_path / "a")
    assert back.tokens.keys() == tokens.keys()
    assert all(torch.equal(back.tokens[path], tokens[path]) for path in tokens)
    assert distance(back, adapter) < 1e-6


@pytest.mark.parametrize("form", ["a1111", "learned_embeds"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_an_embedding_comes_back(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"cat.{suffix}"
    if (form, suffix) == ("learned_embeds", "pt"):
        with pytest.raises(MismatchError, match="written as"):
            save_adapter(path, Adapter({}, {}, {"text_encoder.cat": L}), form, name="cat")
        return
    save_adapter(path, Adapter({}, {}, {"text_encoder.cat": L}), form, dtype=torch.float32, name="cat")
    assert torch.equal(load_adapter(path, allow_pickle=True).tokens["text_encoder.cat"], L)
    again = tmp_path / "again" / f"cat.{suffix}"
    again.parent.mkdir()
    save_adapter(again, Adapter({}, {}, {"text_encoder.cat": L}), form, dtype=torch.float32, name="cat")
    assert path.read_bytes() == again.read_bytes()


def test_the_keys_are_those_that_other_programs_look_for(tmp_path: Path) -> None:
    one = Adapter({}, {}, {"text_encoder.cat": L})
    save_adapter(tmp_path / "a", one, "a1111", name="cat")
    save_adapter(tmp_path / "d", one, "learned_embeds", name="cat")
    save_adapter(tmp_path / "x", Adapter({}, {}, {**one.tokens, "text_encoder_2.cat": G}), "a1111", name="cat")
    keys = [sorted(read_tensors(tmp_path / name)[0]) for name in ("a", "d", "x")]
    assert keys == [["emb_params"], ["cat"], ["clip_g", "clip_l"]]
    save_adapter(tmp_path / "a.pt", one, "a1111", name="cat")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["string_to_param"]["*"].shape == (2, 768)
    assert content["name"] == "cat"


@pytest.mark.parametrize("form", ["a1111", "learned_embeds"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_token_of_stable_diffusion_takes_a_few_kilobytes(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    metadata = {"loractl": "x" * 4000}  # the job that learned it
    save_adapter(tmp_path / "a", Adapter({}, metadata, {"text_encoder.<rex>": L[:1]}), form, dtype=dtype, name="a")
    assert (tmp_path / "a").stat().st_size <= 8192


@pytest.mark.parametrize("form", ["a1111", "learned_embeds", "diffusers"])
def test_two_tokens_or_modules_are_not_written_as_one_embedding(tmp_path: Path, form: str) -> None:
    two = {"text_encoder.a": L, "text_encoder.b": L}
    with pytest.raises(MismatchError):
        save_adapter(tmp_path / "a", Adapter({}, {}, two), form, name="a")
    with pytest.raises(MismatchError):
        save_adapter(tmp_path / "a", Adapter(example().modules, {}, {"text_encoder.a": L}), form, name="a")
    assert not (tmp_path / "a").exists()


def test_the_three_files_of_cloneofsimo_are_read_together(tmp_path: Path) -> None:
    """Written as its save_all does, from the real file."""
    tensors, _ = read_tensors(DATA / "lora_disney.safetensors")

    def factors(component: str, count: int) -> list[torch.Tensor]:
        return [tensors[f"{component}:{n}:{part}"] for n in range(count) for part in ("up", "down")]

    torch.save(factors("unet", 144), tmp_path / "disney.pt")
    torch.save(factors("text_encoder", 48), tmp_path / "disney.text_encoder.pt")
    torch.save({"<s1>": tensors["<s1>"], "<s2>": tensors["<s2>"]}, tmp_path / "disney.ti.pt")
    ours = load_adapter(tmp_path / "disney.pt", allow_pickle=True)
    theirs = load_adapter(DATA / "lora_disney.safetensors")
    assert are_equal(ours, theirs)
    assert ours.tokens.keys() == theirs.tokens.keys()
    alone = load_adapter(tmp_path / "disney.text_encoder.pt", allow_pickle=True)
    assert alone.components() == ["text_encoder"]


def test_a_pickled_adapter_is_read_as_if_it_were_not(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", example(), "kohya", dtype=torch.float32, name="a")
    torch.save(read_tensors(tmp_path / "a")[0], tmp_path / "a.bin")
    assert distance(load_adapter(tmp_path / "a.bin", allow_pickle=True), example()) < 1e-6


def hostile(folder: Path) -> dict[str, Path]:
    """Pickles that run code or claim more than they have."""
    ran = folder / "ran"
    paths = {
        name: folder / f"{name}.pt" for name in ("plain", "old", "new", "nested", "expanded", "cut", "object", "texts")
    }
    paths["plain"].write_bytes(pickle.dumps(Bomb(ran)))
    torch.save(Bomb(ran), paths["old"], _use_new_zipfile_serialization=False)
    torch.save(Bomb(ran), paths["new"])
    torch.save({"string_to_param": {"*": Bomb(ran)}, "name": "a"}, paths["nested"])
    torch.save({"emb_params": torch.ones(1).expand(2**20, 768)}, paths["expanded"])
    torch.save({"emb_params": L}, paths["cut"])
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:-700])
    torch.save([1, 2], paths["object"])
    torch.save({"a": "b"}, paths["texts"])
    return paths


@pytest.mark.parametrize("name", ["plain", "old", "new", "nested", "expanded", "cut", "object", "texts"])
def test_hostile_pickles_are_refused_and_never_run(tmp_path: Path, name: str) -> None:
    path = hostile(tmp_path)[name]
    with pytest.raises(FormatError, match="is a pickle, which could run code"):
        load_adapter(path)
    with pytest.raises(FormatError, match=str(path)):
        load_adapter(path, allow_pickle=True)
    with pytest.raises(FormatError, match=str(path)):
        inspect(path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_the_bomb_does_go_off_where_it_is_let(tmp_path: Path) -> None:
    """So that the test above can fail."""
    pickle.loads(hostile(tmp_path)["plain"].read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "names",
    [("emb_params", "clip_l"), ("t5", "t5xxl", "clip_l"), ("bundle_emb.a.clip_l", "bundle_emb.a.string_to_param.*")],
)
def test_a_token_twice_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    save_file({name: torch.ones(1, 768) for name in names}, tmp_path / "a")
    with pytest.raises(FormatError, match=r"is a second tensor of the token text_encoder(_2)?\.a"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("name", ["learned_embeds.bin", "a.ckpt", "a.PTH"])
@pytest.mark.parametrize("form", ["a1111", "learned_embeds"])
def test_what_is_no_pickle_is_not_named_as_one(tmp_path: Path, name: str, form: str) -> None:
    with pytest.raises(MismatchError, match=f"{name} is named as a pickle"):
        save_adapter(tmp_path / name, Adapter({}, {}, {"text_encoder.a": L}), form, name="a")
    assert not list(tmp_path.iterdir())


def test_unread_tokens_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 3, 4)}, tmp_path / "a")
    with pytest.raises(FormatError, match="no embeddings"):
        load_adapter(tmp_path / "a")
