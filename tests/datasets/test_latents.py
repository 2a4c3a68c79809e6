"""Latents: views of a picture and all that goes with it are cut alike, and what is kept is what would be made anew."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from loractl.data.cache import Cache, fingerprint
from loractl.data.examples import Example
from loractl.data.latents import Encoded, Latents
from loractl.data.masks import read_mask, shrink
from loractl.data.views import Hole, Variety, View
from loractl.families.posterior import Posterior
from loractl.train.streams import stream
from tests.datasets.photos import save_photo

CPU = torch.device("cpu")


def identity(pictures: Tensor) -> Posterior:
    """A stand-in for an autoencoder: the picture itself, with a spread."""
    return Posterior(pictures, torch.full_like(pictures, 0.5))


def coarse(pictures: Tensor) -> Posterior:
    """Another, which shrinks by 4."""
    return Posterior(nn.functional.avg_pool2d(pictures, 4), None)


class Counting:
    """An autoencoder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pictures: Tensor) -> Posterior:
        self.calls += 1
        return identity(pictures)


def draw(content: str, k: int) -> torch.Generator:
    return stream(0, "variant", content, k)


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """The mask is the picture's green channel, so that it must stay so however both are cut."""
    path = save_photo(tmp_path / "photo.png")
    Image.open(path).getchannel("G").save(tmp_path / "mask.png")
    return Example(path, "a photo", mask=tmp_path / "mask.png")


def make(example: Example, encode: Callable[[Tensor], Posterior] = identity, **options: object) -> Latents:
    return Latents([example], [(8, 8)], encode, CPU, **options)  # type: ignore[arg-type]


def equal(one: Encoded, two: Encoded) -> bool:
    names = one.tensors().keys() & two.tensors().keys()
    return one.tensors().keys() == two.tensors().keys() and all(
        torch.equal(one.tensors()[name], two.tensors()[name]) for name in names
    )


@pytest.mark.parametrize("view", [View(0), View(0, flip=True), View(0, x=0.0), View(0, True, x=0.9)])
def test_a_mask_is_cut_and_mirrored_with_its_picture(example: Example, view: View) -> None:
    frames = [(16, 16)]  # the picture's height, so that nothing is resized
    encoded = Latents([example], frames, identity, CPU).encoded([view])
    assert encoded.mask is not None
    torch.testing.assert_close(encoded.mask, (encoded.mean[:, 1:2] + 1) / 2, atol=1e-6, rtol=0)
    other = Latents([example], frames, identity, CPU).encoded([replace(view, flip=not view.flip)])
    assert torch.equal(other.mean.flip(-1), encoded.mean) and not torch.equal(other.mean, encoded.mean)


def test_masks_shrink_to_means() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :4] = 1
    mask[..., 4, 4] = 1
    assert shrink(mask, torch.Size([2, 2])).tolist() == [[[[1.0, 0.0], [0.0, 1 / 16]]]]


def test_alpha_is_a_mask_when_asked_for(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    picture.save(tmp_path / "alpha.png")
    example = Example(tmp_path / "alpha.png", "")
    mask = make(example, coarse, from_alpha=True).encoded([View(0)]).mask
    assert mask is not None and mask.tolist() == [[[[0.0, 1.0], [0.0, 1.0]]]]
    assert make(example, coarse).encoded([View(0)]).mask is None
    assert read_mask(save_photo(tmp_path / "opaque.png"), None, from_alpha=True) is None


def test_pictures_without_a_mask_count_whole_beside_those_with_one(example: Example) -> None:
    latents = Latents([example, replace(example, mask=None)], [(8, 8)] * 2, identity, CPU)
    mask = latents.encoded([View(0), View(1)]).mask
    assert mask is not None
    assert mask[0].max() < 1 and (mask[1] == 1).all()


def test_colors_change_and_shapes_do_not(example: Example) -> None:
    plain, bright, gray = (
        make(example).encoded([view]) for view in (View(0), View(0, brightness=1.2), View(0, saturation=0.0))
    )
    assert bright.mean.mean() > plain.mean.mean() + 0.05
    assert torch.equal(gray.mean[:, 0], gray.mean[:, 1]) and not torch.equal(plain.mean[:, 0], plain.mean[:, 1])
    assert bright.mask is not None and plain.mask is not None and torch.equal(bright.mask, plain.mask)


def test_jitter_stays_in_its_bounds() -> None:
    variety = Variety(jitter=0.1)
    views = [variety.view(0, stream(step)) for step in range(300)]
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(view, name) for view in views]
        assert 0.9 <= min(factors) < 0.91 and 1.09 < max(factors) <= 1.1
    assert not any(view.flip or view.x != 0.5 or view.hole for view in views)


# Inpainting


@pytest.mark.parametrize("view", [View(0), View(0, True, x=0.2, brightness=0.8), View(0, x=1.0)])
@pytest.mark.parametrize("own", [True, False])
def test_hole_and_what_is_seen_fit_the_picture_pixel_for_pixel(example: Example, view: View, own: bool) -> None:
    example = example if own else replace(example, mask=None)
    shown = replace(view, hole=Hole(True, 0.25, 0.125, 0.75, 0.875))
    encoded = Latents([example], [(16, 16)], identity, CPU).encoded([shown])
    assert encoded.hole is not None and encoded.seen is not None
    assert set(encoded.hole.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(encoded.seen.mean, encoded.mean * (1 - encoded.hole))
    if own:  # the example's own mask, cut and mirrored as the picture is
        assert encoded.mask is not None and torch.equal(encoded.hole, (encoded.mask >= 0.5).float())
    else:
        assert encoded.hole[0, 0, 8, 8] == 1 and encoded.hole[0, 0, 0, 0] == 0


def test_holes_are_of_both_kinds_and_of_many_sizes() -> None:
    holes = [view.hole for step in range(200) if (view := Variety(holes=True).view(0, stream(step)))]
    areas = [(hole.right - hole.left) * (hole.bottom - hole.top) for hole in holes if hole]
    assert len(areas) == 200 and min(areas) < 0.1 and max(areas) > 0.5
    assert 70 < sum(hole.is_round for hole in holes if hole) < 130
    assert all(0 <= hole.left < hole.right <= 1 and 0 <= hole.top < hole.bottom <= 1 for hole in holes if hole)


# What is kept


VARIETIES = [
    Variety(),
    Variety(flip=True),
    Variety(flip=True, random_crop=True, jitter=0.2),
    Variety(random_crop=True, holes=True),
]


@pytest.mark.parametrize("variety", VARIETIES)
def test_what_is_kept_is_what_would_be_made_anew(example: Example, variety: Variety, tmp_path: Path) -> None:
    fresh, kept = make(example, variety=variety), make(example, variety=variety)
    on_disk, again = (make(example, variety=variety) for _ in range(2))
    cache = Cache(tmp_path / "cache", "vae")
    kept.prepare(draw, variants=3)
    on_disk.prepare(draw, 3, cache)
    again.prepare(draw, 3, cache)
    assert kept.complete and not fresh.complete
    for step in range(20):
        view = kept.view(0, stream(step))
        assert again.view(0, stream(step)) == view
        for other in (fresh, on_disk, again):
            assert equal(kept.encoded([view]), other.encoded([view]))
        if not variety.is_endless:
            assert fresh.view(0, stream(step)) == view


def test_every_step_sees_another_of_the_kept_views(example: Example) -> None:
    latents = make(example, variety=Variety(flip=True, random_crop=True, jitter=0.1))
    latents.prepare(draw, variants=4)
    views = [latents.view(0, stream(step)) for step in range(400)]
    assert len(set(views)) == 8  # 4 variants, each mirrored and not
    assert min(views.count(view) for view in set(views)) > 25


def test_without_keeping_every_step_sees_a_new_view(example: Example) -> None:
    latents = make(example, variety=Variety(jitter=0.1))
    assert len({latents.view(0, stream(step)) for step in range(100)}) == 100


def test_the_autoencoder_is_not_needed_once_all_is_kept(example: Example, tmp_path: Path) -> None:
    encode = Counting()
    cache = Cache(tmp_path / "cache", "vae")
    for calls in (4, 4):  # the second time all come from the disk
        latents = make(example, encode, variety=Variety(flip=True, random_crop=True))
        latents.prepare(draw, 2, cache)
        latents.encoded([latents.view(0, stream(0))])
        assert encode.calls == calls


@pytest.mark.parametrize("edited", ["photo.png", "mask.png"])
def test_an_edit_is_never_missed(example: Example, tmp_path: Path, edited: str) -> None:
    cache = Cache(tmp_path / "cache", "vae")
    latents = make(example, variety=Variety(flip=True))
    latents.prepare(draw, 1, cache)
    before = latents.encoded([View(0)])
    picture = Image.open(tmp_path / edited)
    picture.putpixel((12, 8), 255 if edited == "mask.png" else (0, 255, 0))
    picture.save(tmp_path / edited)
    for other in (latents, make(example, variety=Variety(flip=True))):
        other.prepare(draw, 1, cache)
        assert not equal(other.encoded([View(0)]), before)
        assert equal(other.encoded([View(0)]), make(example).encoded([View(0)]))


def test_every_part_of_the_recipe_is_in_the_key(example: Example, tmp_path: Path) -> None:
    def calls(encoder: str = "vae", frame: tuple[int, int] = (8, 8), **options: object) -> int:
        encode = Counting()
        latents = Latents([example], [frame], encode, CPU, **options)  # type: ignore[arg-type]
        latents.prepare(draw, 1, Cache(tmp_path / "cache", encoder))
        return encode.calls

    assert calls() == 1 and calls() == 0
    assert calls(encoder="another") == 1
    assert calls(frame=(8, 12)) == 1
    assert calls(from_alpha=True) == 1
    assert calls(variety=Variety(flip=True)) == 1  # the mirror image alone
    assert calls(variety=Variety(random_crop=True)) == 1
    assert calls() == 0


def test_a_moved_picture_is_the_same_picture(example: Example, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", "vae")
    make(example, variety=Variety(random_crop=True)).prepare(draw, 2, cache)
    moved = replace(example, path=example.path.rename(tmp_path / "moved.png"))
    encode = Counting()
    other = Example(save_photo(tmp_path / "other.png", seed=1), "")
    latents = Latents([other, moved], [(8, 8)] * 2, encode, CPU, Variety(random_crop=True))
    latents.prepare(draw, 2, cache)
    assert encode.calls == 2  # the other's alone


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_made_again(example: Example, tmp_path: Path, damage: str) -> None:
    cache, encode = Cache(tmp_path / "cache", "vae"), Counting()
    make(example, encode).prepare(draw, 1, cache)
    (entry,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = entry.read_bytes()
    entry.write_bytes({"cut": whole[:-5], "flip": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage])
    latents = make(example, encode)
    latents.prepare(draw, 1, cache)
    assert encode.calls == 2
    assert equal(latents.encoded([View(0)]), make(example).encoded([View(0)]))
    assert entry.read_bytes() == whole


def test_the_fingerprint_follows_weights_precision_and_configuration() -> None:
    def network(scale: float = 1.0, name: str = "a") -> nn.Module:
        layer = nn.Linear(2, 2)
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
        layer.config = {"scaling_factor": scale, "_name_or_path": name}  # type: ignore[assignment]
        return layer

    same = fingerprint(network())
    changed = network()
    with torch.no_grad():
        changed.weight[0, 0] = 1.5  # type: ignore[index]
    assert fingerprint(network(name="b")) == same
    assert len({same, fingerprint(network(2.0)), fingerprint(network().half()), fingerprint(changed)}) == 4


def test_the_labs_autoencoder(tmp_path: Path) -> None:
    """The real thing in miniature: prepared with a cache, freed, and used."""
    from loractl.families.pipeline import load_model

    model = load_model("lab", CPU, torch.float32)
    examples = [Example(save_photo(tmp_path / f"{i}.png", (96, 64), seed=i), "") for i in range(2)]
    fresh, kept = (
        Latents(examples, [(64, 64), (64, 48)], model.encode_pictures, CPU, Variety(flip=True)) for _ in range(2)
    )
    kept.prepare(draw, 1, Cache(tmp_path / "cache", fingerprint(model.vae)))
    views = [[View(0)], [View(1, flip=True)]]
    made = [fresh.encoded(each) for each in views]
    assert all(equal(kept.encoded(each), one) for each, one in zip(views, made, strict=True))
    assert made[0].mean.shape[-2:] == (16, 16) and made[1].mean.shape[-2:] == (12, 16)
