"""Where crops lie, where subjects are found, and what becomes of a crop."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from loractl.errors import InputError
from loractl.prepare import faces as detector
from loractl.prepare.augment import Augmentation, Flip, Jitter, Rotation
from loractl.prepare.boxes import Box, area, cuts, overlap
from loractl.prepare.crops import bucket_shape, center, face_weights, largest, several, subject
from loractl.prepare.faces import faces
from loractl.prepare.resizing import resize
from loractl.prepare.saliency import saliency
from loractl.prepare.seeds import between, seed_for

DATA = Path(__file__).parents[1] / "data"

sides = st.integers(8, 300)
shapes = st.tuples(st.integers(1, 8), st.integers(1, 8))


@st.composite
def boxes(draw: st.DrawFn, width: int = 300, height: int = 300) -> Box:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))


def is_inside(box: Box, within: Box) -> bool:
    return overlap(box, within) == area(box) > 0


@settings(max_examples=30, deadline=None)
@given(within=boxes(), shape=shapes, found=st.lists(boxes(), max_size=3), seed=st.integers(0, 9))
def test_no_crop_cuts_a_face_or_leaves_its_box(
    within: Box, shape: tuple[int, int], found: list[Box], seed: int
) -> None:
    weights = face_weights(found, (300, 300))
    crops = [center(within, shape, found), subject(within, shape, weights, found)]
    crops += several(within, shape, 3, seed, faces=found)
    for box in crops:
        if box is not None:
            assert is_inside(box, within)
            assert not any(cuts(box, face) for face in found)


@settings(max_examples=30, deadline=None)
@given(width=sides, height=sides, shape=shapes)
def test_crops_are_as_large_as_their_shape_allows(width: int, height: int, shape: tuple[int, int]) -> None:
    size = largest((0, 0, width, height), shape)
    assert size[0] == width or size[1] == height
    assert abs(size[0] * shape[1] - size[1] * shape[0]) <= max(shape)  # of the shape, to a pixel


def test_the_center_is_the_middle_and_moves_no_more_than_a_face_asks() -> None:
    within = (0, 0, 300, 100)
    assert center(within, (1, 1)) == (100, 0, 200, 100)
    assert center(within, (1, 1), [(190, 10, 230, 50)]) == (90, 0, 190, 100)
    assert center(within, (1, 1), [(180, 10, 210, 50)]) == (110, 0, 210, 100)
    assert center(within, (1, 1), [(10, 10, 290, 90)]) is None  # no place for it, none beside it


def test_the_subject_is_held_whole_and_in_the_middle() -> None:
    weights = np.zeros((100, 300), np.float32)
    weights[20:60, 210:240] = 1
    assert subject((0, 0, 300, 100), (1, 1), weights) == pytest.approx((175, 0, 275, 100), abs=2)
    weights[20:60, 0:10] = 1  # a smaller thing, far away: one can't have both
    box = subject((0, 0, 300, 100), (1, 1), weights)
    assert box is not None
    assert box[0] <= 210 < 240 <= box[2]
    assert subject((0, 0, 300, 100), (1, 1), 0 * weights) == center((0, 0, 300, 100), (1, 1))


def test_where_all_faces_fit_all_are_taken() -> None:
    found = [(20, 10, 50, 40), (90, 20, 115, 45)]
    box = subject((0, 0, 300, 100), (1, 1), face_weights(found, (300, 100)), found)
    assert box is not None
    assert all(is_inside(face, box) for face in found)


def test_random_crops_follow_from_the_seed_and_differ() -> None:
    within = (10, 20, 410, 320)
    seven = several(within, (1, 1), 7, seed=5)
    assert several(within, (1, 1), 7, seed=5) == seven
    assert several(within, (1, 1), 3, seed=5) == seven[:3]
    assert several(within, (1, 1), 7, seed=6) != seven
    assert len(set(seven)) == 7
    widths = [right - left for left, _, right, _ in seven]
    assert all(0.6 * 300 - 1 <= width <= 300 for width in widths)
    assert {right - left for left, _, right, _ in several(within, (1, 1), 4, 5, least=1)} == {300}


def test_no_random_crop_where_a_face_leaves_no_room() -> None:
    assert several((0, 0, 100, 100), (1, 1), 3, seed=0, least=0.9, faces=[(-10, 10, 110, 50)]) == []


def test_buckets_are_those_of_training() -> None:
    assert bucket_shape((1500, 1000), 512) == (640, 384)
    assert bucket_shape((300, 200), 512) == (256, 192)
    assert bucket_shape((300, 200), 512, upscale=True) == (640, 384)
    assert bucket_shape((300, 40), 512) is None


def test_draws_depend_on_seed_content_and_purpose_alone() -> None:
    seeds = [seed_for(*each) for each in ((1, "aa", "crop"), (2, "aa", "crop"), (1, "ab", "crop"), (1, "aa", "flip"))]
    assert len(set(seeds)) == 4
    assert seed_for(1, "aa", "crop") == seeds[0] == 235785682548253640
    assert between(seeds[0], 2, 0, 1) == between(seeds[0], 3, 0, 1)[:2]


def planted(seed: int) -> tuple[Image.Image, Box]:
    """A textured scene with light falling in from a side, and one thing of another color somewhere in it."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(40, 200, 3)
    light = np.linspace(-25, 25, 200)[:, None, None] * rng.choice([-1, 1])
    coarse = Image.fromarray(rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)).resize((300, 200))
    texture = (np.asarray(coarse, float) - 128) * 0.12 + rng.normal(0, 8, (200, 300, 3))
    image = Image.fromarray((ground + light + texture).clip(0, 255).astype(np.uint8))
    width, height = (int(side) for side in rng.integers(30, 80, 2))
    left, top = int(rng.integers(10, 290 - width)), int(rng.integers(10, 190 - height))
    color = tuple(int(value) for value in (ground + 128 + rng.integers(-30, 30, 3)) % 256)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if seed % 2 else draw.rectangle)((left, top, left + width, top + height), fill=color)
    return image, (left, top, left + width, top + height)


def test_planted_things_are_found() -> None:
    found = 0
    for seed in range(20):
        image, (left, top, right, bottom) = planted(seed)
        values = saliency(image)
        y, x = np.unravel_index(values.argmax(), values.shape)
        box = subject((0, 0, 300, 200), (1, 1), values)
        assert box is not None
        held = overlap(box, (left, top, right, bottom)) / ((right - left) * (bottom - top))
        found += left <= x <= right and top <= y <= bottom and held >= 0.75
    assert found >= 18


def test_saliency_has_the_size_of_the_picture_and_its_range() -> None:
    values = saliency(planted(3)[0])
    assert (values.shape, values.dtype) == ((200, 300), np.float32)
    assert 0 <= values.min() < 0.05 < 0.9 < values.max() <= 1
    assert np.isfinite(saliency(Image.new("RGB", (3, 200), "navy"))).all()


def test_a_face_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr(detector, "_SIDE", 200)  # smaller than the picture, as 512 is in life
    with Image.open(DATA / "astronaut.jpg") as file:
        ((left, top, right, bottom),) = faces(file.convert("RGB"))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((140, 72), abs=15)
    assert 40 < right - left < 90


def test_where_there_is_no_face_none_is_found() -> None:
    pytest.importorskip("cv2")
    assert faces(planted(0)[0]) == []


def test_a_missing_detector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    detector._cascade.cache_clear()
    with pytest.raises(InputError, match=r"loractl\[faces\]"):
        faces(Image.new("RGB", (64, 64)))


def test_light_adds_up_in_linear_light() -> None:
    checkers = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert resize(checkers, (8, 8)).getpixel((4, 4))[0] in range(126, 130)  # type: ignore[index]
    assert resize(checkers, (8, 8), "linear").getpixel((4, 4))[0] in range(186, 190)  # type: ignore[index]  # 255 · 0.5^(1/2.2)


@pytest.mark.parametrize("light", ["gamma", "linear"])
def test_resizing_keeps_what_is_even_and_takes_the_box(light: str) -> None:
    levels = Image.linear_gradient("L").resize((256, 40)).convert("RGB")
    assert resize(levels, levels.size, light).tobytes() == levels.tobytes()  # type: ignore[arg-type]
    canvas = Image.new("RGB", (100, 80), "red")
    canvas.paste((10, 20, 30), (20, 30, 60, 70))
    part = resize(canvas, (10, 10), light, (20, 30, 60, 70))  # type: ignore[arg-type]
    assert part.getcolors() == [(100, (10, 20, 30))]


CHANGES: list[Augmentation] = [Flip(), Rotation(3, 6.0), Jitter(3, 0.3)]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_changes_are_the_same_each_time(change: Augmentation) -> None:
    image, _ = planted(1)
    once, again = change.apply(image)[0], change.apply(image)[0]
    assert once.tobytes() == again.tobytes() != image.tobytes()
    assert once.size == image.size
    assert change.apply(image, None)[1] is None


def test_a_flip_undoes_itself_and_takes_the_mask_along() -> None:
    image, box = planted(1)
    mask = Image.new("L", image.size)
    mask.paste(255, box)
    flipped, mirrored = Flip().apply(image, mask)
    assert mirrored is not None
    assert mirrored.getbbox() == (300 - box[2], box[1], 300 - box[0], box[3])
    assert Flip().apply(flipped)[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(60, 60), (90, 40), (40, 90)])
def test_rotation_leaves_no_corner_empty_and_turns_the_mask_alike(size: tuple[int, int]) -> None:
    rotation = Rotation(seed=1, degrees=15)
    assert 5 < abs(rotation.angle) <= 15
    white = Image.new("L", size, 255)
    assert rotation.apply(white)[0].getextrema() == (255, 255)
    blob = Image.new("L", size)
    ImageDraw.Draw(blob).ellipse((5, 5, 30, 30), fill=255)
    turned, mask = rotation.apply(blob, blob)
    assert mask is not None
    assert np.asarray(ImageChops.difference(turned, mask)).mean() < 3
    assert np.asarray(ImageChops.difference(turned, blob)).mean() > 3


def test_rotation_turns_by_the_angle_that_it_tells() -> None:
    rotation = Rotation(seed=1, degrees=15)
    line = Image.new("L", (201, 201))
    ImageDraw.Draw(line).line((0, 100, 200, 100), fill=255, width=3)
    turned = np.asarray(rotation.apply(line)[0], float)
    heights = [float(turned[:, x] @ np.arange(201)) / turned[:, x].sum() for x in (40, 160)]
    slope = np.degrees(np.arctan2(heights[0] - heights[1], 120))
    assert slope == pytest.approx(rotation.angle, abs=0.3)
    assert rotation.describe() == f"rotated by {rotation.angle:.2f}°"


def test_jitter_changes_colors_by_what_it_tells_and_no_mask() -> None:
    jitter = Jitter(seed=4, strength=0.2)
    assert all(0.8 <= factor <= 1.2 for factor in jitter.factors)
    mask = Image.new("L", (8, 8), 77)
    gray, same = jitter.apply(Image.new("RGB", (8, 8), (100, 100, 100)), mask)
    assert same is mask
    assert gray.getpixel((0, 0)) == pytest.approx((100 * jitter.factors[0],) * 3, abs=1.5)
    assert Jitter(4, 0.2).describe() == jitter.describe() != Jitter(5, 0.2).describe()
