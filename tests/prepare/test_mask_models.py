"""Masks by networks of random weights: what they say of a picture is what ends in its mask."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPSegForImageSegmentation,
    DetrForSegmentation,
    SegformerForSemanticSegmentation,
)

from loractl.errors import InputError
from loractl.prepare.mask_models import SIDE, load_rembg, load_segmenter
from loractl.prepare.pretrained import Checkpoint
from tests.evaluate.encoders import save_clip
from tests.prepare.models import pictures, save_clipseg, save_detr, save_segformer


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(str(folder), device="cpu")


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("clipseg")
    save_clipseg(folder)
    return checkpoint(folder)


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("segformer")
    save_segformer(folder, "background", "cat", "Dog")
    return checkpoint(folder)


def squared(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def white(mask: Image.Image) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = np.asarray(mask)
    assert mask.mode == "L"
    assert set(np.unique(found)) <= {0, 255}
    return found > 0


def test_clipseg_finds_what_the_text_says(clipseg: Checkpoint) -> None:
    masks = load_segmenter(clipseg, prompt="a dog", threshold=None)(pictures(3))
    assert [mask.size for mask in masks] == [picture.size for picture in pictures(3)]
    assert all(0 < white(mask).mean() < 1 for mask in masks)
    others = load_segmenter(clipseg, prompt="the sea!", threshold=None)(pictures(3))
    assert any((white(a) != white(b)).any() for a, b in zip(masks, others, strict=True))


def test_a_batch_has_the_masks_of_its_pictures_alone(clipseg: Checkpoint) -> None:
    mask = load_segmenter(clipseg, prompt="a dog", threshold=None)
    alone = [each for picture in pictures(3) for each in mask([picture])]
    for one, other in zip(mask(pictures(3)), alone, strict=True):
        assert (white(one) != white(other)).mean() < 0.01  # a rounding at the very threshold


def test_the_threshold_is_a_probability_of_the_model(clipseg: Checkpoint) -> None:
    picture = pictures(1)[0].resize((16, 16))
    model = CLIPSegForImageSegmentation.from_pretrained(clipseg.source)
    processor = AutoProcessor.from_pretrained(clipseg.source)
    inputs = processor(text=["a dog"], images=[squared(picture)], return_tensors="pt")
    with torch.inference_mode():
        chance = model(**inputs).logits.sigmoid().reshape(16, 16).numpy()
    middle = float(np.median(chance))
    found = white(load_segmenter(clipseg, prompt="a dog", threshold=middle)([picture])[0])
    assert ((chance > middle) == found).mean() > 0.98


LABELS = {"cat": [1], "background,dog": [0, 2], "dog, Cat": [1, 2], None: [1, 2]}


@pytest.mark.parametrize("prompt", LABELS)
def test_labels_are_named_or_all_but_the_background(segformer: Checkpoint, prompt: str | None) -> None:
    picture = pictures(1)[0].resize((8, 8))
    model = SegformerForSemanticSegmentation.from_pretrained(segformer.source)
    processor = AutoImageProcessor.from_pretrained(segformer.source)
    with torch.inference_mode():
        logits = model(**processor([squared(picture)], return_tensors="pt")).logits[0]
    chance = logits.softmax(0)[LABELS[prompt]].sum(0).numpy()
    middle = float(np.median(chance))
    found = white(load_segmenter(segformer, prompt=prompt, threshold=middle)([picture])[0])
    assert ((chance > middle) == found).mean() > 0.98


def test_models_that_find_objects_are_read_too(tmp_path: Path) -> None:
    save_detr(tmp_path, "background", "cat", "dog")
    model = DetrForSegmentation.from_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with torch.inference_mode():
        outputs = model(**processor([squared(pictures(1)[0])], return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(SIDE, SIDE)])[0].numpy()
    for prompt in ("cat", "dog"):
        found = white(load_segmenter(checkpoint(tmp_path), prompt=prompt)([squared(pictures(1)[0])])[0])
        assert (found == np.isin(labels, ["background", "cat", "dog"].index(prompt))).all()


def test_what_can_not_be_asked_is_refused(clipseg: Checkpoint, segformer: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the subject in a prompt"):
        load_segmenter(clipseg)
    with pytest.raises(InputError, match="has no label 'cta'; did you mean cat"):
        load_segmenter(segformer, prompt="cta")
    with pytest.raises(InputError, match="has no label 'sea'; it has background, cat, Dog"):
        load_segmenter(segformer, prompt="sea")
    save_segformer(tmp_path / "rooms", "wall", "floor")
    with pytest.raises(InputError, match=r"has no background label: name the subject's in a prompt \(wall, floor\)"):
        load_segmenter(checkpoint(tmp_path / "rooms"))
    save_clip(tmp_path / "clip")
    with pytest.raises(InputError, match="is of the kind clip, which is no segmentation model"):
        load_segmenter(checkpoint(tmp_path / "clip"), prompt="LABEL_0")


def test_rembg_is_asked_for_masks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_session(name: str) -> str:
        if name != "u2net":
            raise ValueError(f"No session class found for model '{name}'")
        return f"session of {name}"

    def remove(data: Image.Image, session: str, only_mask: bool) -> Image.Image:
        assert (session, only_mask) == ("session of u2net", True)
        return data.getchannel("R")

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(new_session=new_session, remove=remove))
    masks = load_rembg()(pictures(2))
    assert [mask.tobytes() for mask in masks] == [picture.getchannel("R").tobytes() for picture in pictures(2)]
    with pytest.raises(InputError, match="rembg's model 'u3net' can't be loaded: No session class"):
        load_rembg("u3net")


def test_rembg_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(InputError, match=r'not installed: pip install "loractl\[rembg\]"'):
        load_rembg()
