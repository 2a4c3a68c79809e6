"""Captions by networks of transformers: a BLIP of random weights goes through all that a real one does."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2VLProcessor,
)

from loractl.errors import InputError
from loractl.prepare.batches import Batches
from loractl.prepare.caption_models import load_image_to_text
from loractl.prepare.pretrained import Checkpoint, load_model
from tests.evaluate.encoders import save_clip
from tests.prepare.models import pictures, save_blip, save_blip2, save_florence, save_qwen


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    save_blip(folder)
    return folder


def test_a_batch_says_what_its_pictures_say_alone(blip: Path) -> None:
    write = load_image_to_text(Checkpoint(str(blip), device="cpu"), max_tokens=8)
    captions = write(pictures(4))
    assert captions == [caption for picture in pictures(4) for caption in write([picture])]
    assert len(set(captions)) > 1
    assert all(0 < len(caption.split()) <= 8 and "[" not in caption for caption in captions)


def test_blip_goes_on_with_the_prompt(blip: Path) -> None:
    write = load_image_to_text(Checkpoint(str(blip), device="cpu"), prompt="a photo of", max_tokens=4)
    captions = write(pictures(2))
    assert all(caption.startswith("a photo of ") for caption in captions)
    assert captions != load_image_to_text(Checkpoint(str(blip), device="cpu"), max_tokens=4)(pictures(2))


def test_the_precision_is_that_of_the_job(blip: Path) -> None:
    checkpoint = Checkpoint(str(blip), device="cpu", precision="bf16")
    model = load_model(checkpoint, AutoModelForImageTextToText, AutoProcessor)
    inputs = model.inputs(images=pictures(1), text=["a dog"])
    assert model.network.dtype == inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.int64
    assert all(load_image_to_text(checkpoint, max_tokens=4)(pictures(2)))


def test_what_does_not_fit_in_memory_is_done_in_halves(blip: Path) -> None:
    write = load_image_to_text(Checkpoint(str(blip), device="cpu"), max_tokens=4)

    def small(batch: list[object]) -> list[str]:
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return write(batch)

    assert Batches(small, 5)(pictures(5)) == write(pictures(5))


WITHOUT_CHAT = {"blip": save_blip, "blip-2": save_blip2, "florence2": save_florence}


@pytest.mark.parametrize("kind", WITHOUT_CHAT)
def test_every_family_answers_and_does_not_repeat_what_it_is_asked(tmp_path: Path, kind: str) -> None:
    WITHOUT_CHAT[kind](tmp_path)
    prompt = None if kind == "florence2" else "the sea on grass"
    write = load_image_to_text(Checkpoint(str(tmp_path), device="cpu"), prompt=prompt, max_tokens=5)
    captions = write(pictures(3))
    assert captions == [caption for picture in pictures(3) for caption in write([picture])]
    assert all(captions)
    assert all(caption.startswith("the sea on grass") == (kind == "blip") for caption in captions)


def test_qwen_is_asked_in_a_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processor takes videos too, and for these torchvision; here it has none."""
    save_qwen(tmp_path)
    monkeypatch.setattr(Qwen2VLProcessor, "check_argument_for_proper_class", lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    images = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    whole = Qwen2VLProcessor(images, tokenizer, None, chat_template=tokenizer.chat_template)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: whole)
    write = load_image_to_text(Checkpoint(str(tmp_path), device="cpu"), max_tokens=5)
    captions = write(pictures(3))  # of different sizes, so that the shorter questions are padded
    assert captions == [caption for picture in pictures(3) for caption in write([picture])]
    assert len(set(captions)) > 1
    other = load_image_to_text(Checkpoint(str(tmp_path), device="cpu"), prompt="two eyes", max_tokens=5)
    assert other(pictures(3)) != captions


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="nothing is missing")
def test_what_has_to_be_installed_is_said(tmp_path: Path) -> None:
    save_qwen(tmp_path)
    with pytest.raises(InputError, match="needs a package that is not installed: pip install torchvision"):
        load_image_to_text(Checkpoint(str(tmp_path), device="cpu"))


@pytest.mark.cuda
def test_a_gpu_says_the_same(blip: Path) -> None:
    on = {name: Checkpoint(str(blip), device=name, precision="fp32") for name in ("cpu", "cuda")}
    here, there = (load_image_to_text(checkpoint, max_tokens=4)(pictures(3)) for checkpoint in on.values())
    assert here == there


def test_models_that_write_no_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.*nowhere' can't be loaded from a folder here or from the hub"):
        load_image_to_text(Checkpoint(str(tmp_path / "nowhere")))
    save_clip(tmp_path)
    with pytest.raises(InputError, match="is of the kind clip: captions are written by blip, blip-2, florence2"):
        load_image_to_text(Checkpoint(str(tmp_path)))
