"""Networks of transformers that say what a picture shows: BLIP, BLIP-2, Florence-2 and Qwen-VL, by hub id or path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from loractl.errors import InputError
from loractl.prepare.caption_rules import one_line
from loractl.prepare.pretrained import Checkpoint, Model, load_config, load_model

Pictures = Sequence[Image.Image]


def _beside(model: Model, pictures: Pictures, prompt: str) -> dict[str, Any]:
    """Pictures and, unless it is empty, the prompt as plain text."""
    texts = {"text": [prompt] * len(pictures), "padding": True} if prompt else {}
    return model.inputs(images=list(pictures), **texts)


def _in_chat(model: Model, pictures: Pictures, prompt: str) -> dict[str, Any]:
    """A question about each picture. Answers start where the questions end, so padding goes to the left."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    question = model.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    model.processor.tokenizer.padding_side = "left"
    return model.inputs(images=list(pictures), text=[question] * len(pictures), padding=True)


@dataclass(frozen=True)
class Family:
    """How models of one kind are asked, and what for where the job has no prompt."""

    ask: Callable[[Model, Pictures, str], dict[str, Any]]
    prompt: str = ""


_CHAT = Family(_in_chat, "Describe this picture in one sentence.")
FAMILIES: Mapping[str, Family] = {  # by the configuration's model_type
    "blip": Family(_beside),  # goes on with the prompt, as in "a photo of"
    "blip-2": Family(_beside),
    "florence2": Family(_beside, "<DETAILED_CAPTION>"),  # its prompts are names of tasks
    "qwen2_vl": _CHAT,
    "qwen2_5_vl": _CHAT,
    "qwen3_vl": _CHAT,
}


def load_image_to_text(
    checkpoint: Checkpoint, *, prompt: str | None = None, max_tokens: int = 64
) -> Callable[[Pictures], list[str]]:
    """A function from a batch of RGB pictures to their captions, each the likeliest word by word.

    Raises InputError where there is no such model or it is of no known family.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kind = load_config(checkpoint).model_type
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"the model {checkpoint.source!r} is of the kind {kind}: captions are written by {known}")
    model, family = load_model(checkpoint, AutoModelForImageTextToText, AutoProcessor), FAMILIES[kind]
    asked = family.prompt if prompt is None else prompt
    return lambda pictures: _answers(model, family.ask(model, pictures, asked), max_tokens)


def _answers(model: Model, inputs: Mapping[str, Any], max_tokens: int) -> list[str]:
    import torch

    question = inputs.get("input_ids")
    with torch.inference_mode():
        ids = model.network.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
    # A decoder without an encoder repeats the question before it answers.
    if question is not None and torch.equal(ids[:, : question.shape[1]], question):
        ids = ids[:, question.shape[1] :]
    return [one_line(text) for text in model.processor.batch_decode(ids, skip_special_tokens=True)]
