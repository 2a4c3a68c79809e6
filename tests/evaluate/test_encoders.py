"""Encoders say what their networks say, whichever way a picture comes; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize

from loractl.errors import FormatError, InputError, MismatchError
from loractl.evaluate.encoders import EncoderSource, load_encoder
from tests.evaluate.encoders import pictures, save_clip, save_dinov2, save_siglip, tiny_classifier

CPU = torch.device("cpu")
TINY = "tests.evaluate.encoders.tiny_classifier"
SAVERS: dict[str, Callable[[Path], Any]] = {"clip": save_clip, "siglip": save_siglip, "dinov2": save_dinov2}


@pytest.mark.parametrize("kind", SAVERS)
def test_pictures_become_directions_that_do_not_depend_on_their_neighbors(kind: str, tmp_path: Path) -> None:
    SAVERS[kind](tmp_path)
    encoder = load_encoder(EncoderSource(str(tmp_path)), CPU)
    several = pictures(18)
    features = encoder.images(several)
    assert features.shape[0] == 18 and features.dim() == 2
    assert torch.allclose(features.norm(dim=1), torch.ones(18), atol=1e-6)
    assert torch.allclose(encoder.images(several[17:]), features[17:], atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cosines_are_those_of_the_model_itself(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    model = SAVERS[kind](tmp_path)
    encoder = load_encoder(EncoderSource(str(tmp_path)), CPU)
    captions, several = ["a dog", "a red cat on a wall"], pictures(3)
    texts = AutoTokenizer.from_pretrained(tmp_path)(captions, padding="max_length", max_length=24, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(images=several, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**texts, **pixels)
    assert torch.allclose(encoder.images(several), normalize(theirs.image_embeds, dim=1), atol=1e-5)
    ours = encoder.texts(captions)
    assert ours is not None and torch.allclose(ours, normalize(theirs.text_embeds, dim=1), atol=1e-5)


def test_dinov2_reads_no_text(tmp_path: Path) -> None:
    save_dinov2(tmp_path)
    assert load_encoder(EncoderSource(str(tmp_path)), CPU).texts(["a dog"]) is None


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(tiny_classifier().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_a_classifier_gives_what_goes_into_its_head(weights: Path) -> None:
    encoder = load_encoder(EncoderSource(TINY, weights=weights), CPU)
    color = torch.tensor([(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225])
    features = encoder.images([Image.new("RGB", (30, 40), (200, 100, 50))] * 17)
    expected = normalize(tiny_classifier().body(color)[None], dim=1).detach()
    assert torch.allclose(features, expected.expand(17, 4), atol=1e-5)
    assert encoder.texts(["a dog"]) is None


def test_a_pickle_of_weights_must_be_allowed(tmp_path: Path) -> None:
    torch.save(tiny_classifier().state_dict(), tmp_path / "weights.pth")
    source = EncoderSource(TINY, weights=tmp_path / "weights.pth")
    with pytest.raises(FormatError, match="pickle"):
        load_encoder(source, CPU)
    allowed = load_encoder(EncoderSource(TINY, weights=source.weights, allow_pickle=True), CPU)
    assert allowed.images(pictures(1)).shape == (1, 4)


@pytest.mark.parametrize(
    ("path", "error", "problem"),
    [
        ("nowhere.resnet", InputError, "no function that can be imported"),
        ("tests.evaluate.encoders.missing", InputError, "no function that can be imported"),
        ("tests.evaluate.encoders.no_network", MismatchError, "returned a str"),
        ("tests.evaluate.mobilenet.mobilenet_v2", MismatchError, "not those of"),
    ],
)
def test_what_is_no_classifier_is_told(path: str, error: type[Exception], problem: str, weights: Path) -> None:
    with pytest.raises(error, match=problem):
        load_encoder(EncoderSource(path, weights=weights), CPU)


def test_an_encoder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be loaded"):
        load_encoder(EncoderSource(str(tmp_path)), CPU)
