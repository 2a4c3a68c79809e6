"""Captioners and segmentation models of random weights, saved as their real sisters are."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    BartConfig,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    DetrConfig,
    DetrForSegmentation,
    DetrImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    OPTConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    ViTImageProcessorPil,
)

from tests.tiny import tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 8}
SQUARE = {"height": 16, "width": 16}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
WORDS = ["a", "photo", "of", "red", "green", "blue", "dog", "cat", "on", "the", "grass", "sea", "one", "two", "eyes"]


def tokenizer_of(*marks: str, **changes: Any) -> BertTokenizer:
    """Knows the words above and the marks; texts become ids and nothing else."""
    ids = {token: index for index, token in enumerate([*SPECIAL, *WORDS, *marks])}
    return BertTokenizer(vocab=ids, model_input_names=["input_ids", "attention_mask"], **changes)


def save_blip(folder: Path) -> None:
    tokenizer = tokenizer_of(bos_token="[DEC]")
    end = tokenizer.sep_token_id
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0, "sep_token_id": end, "eos_token_id": end}
    text = {**SIZES, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION))
    _save(folder, model, BlipProcessor(BlipImageProcessorPil(size=SQUARE), tokenizer))


def save_blip2(folder: Path) -> None:
    tokenizer = tokenizer_of(bos_token="[DEC]", eos_token="[SEP]")
    processor = Blip2Processor(BlipImageProcessorPil(size=SQUARE), tokenizer, num_query_tokens=4)
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 2}
    text = OPTConfig(**ends, **sizes, vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=64)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**SIZES, "vocab_size": 10},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    _save(folder, Blip2ForConditionalGeneration(config), processor)


def save_florence(folder: Path) -> None:
    ends = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>"}}
    tokenizer = tokenizer_of("<image>", "<s>", "</s>", **ends)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 2
    parts = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    text = BartConfig(
        **parts,
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("a"),
        forced_eos_token_id=None,
    )
    stages: dict[str, Any] = {"depths": [1] * 4, "embed_dim": [8] * 4, "num_heads": [1] * 4, "num_groups": [1] * 4}
    vision = {**stages, "window_size": 2, "projection_dim": 16}
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=image)
    _save(folder, Florence2ForConditionalGeneration(config), Florence2Processor(images, tokenizer))


CHAT = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def save_qwen(folder: Path) -> None:
    marks = {f"{name}_token_id": f"<|{name}|>" for name in ("vision_start", "vision_end")}
    marks |= {f"{name}_token_id": f"<|{name}_pad|>" for name in ("image", "video")}
    added = list(marks.values())
    tokenizer = tokenizer_of(*added, eos_token="[SEP]", additional_special_tokens=added, chat_template=CHAT)
    text = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    patches = {"patch_size": 4, "temporal_patch_size": 2}
    vision = {**patches, "spatial_merge_size": 2, "depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    config = Qwen2VLConfig(text_config=text, vision_config={**vision, "mlp_ratio": 2}, **ids)
    _save(folder, Qwen2VLForConditionalGeneration(config), tokenizer)
    Qwen2VLImageProcessorPil(**patches, merge_size=2, min_pixels=64, max_pixels=1024).save_pretrained(folder)


def save_clipseg(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**SIZES, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    parts = {"projection_dim": 8, "reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    config = CLIPSegConfig(text_config=text, vision_config=VISION, extract_layers=[0, 1], **parts)
    _save(folder, CLIPSegForImageSegmentation(config), CLIPSegProcessor(ViTImageProcessorPil(size=SQUARE), tokenizer))


def save_segformer(folder: Path, *labels: str) -> None:
    shape = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
    config = SegformerConfig(**shape, decoder_hidden_size=8, id2label=dict(enumerate(labels)))
    processor = SegformerImageProcessorPil(size={"height": 32, "width": 32})
    _save(folder, SegformerForSemanticSegmentation(config), processor)


def save_detr(folder: Path, *labels: str) -> None:
    stages: dict[str, Any] = {"hidden_sizes": [8] * 4, "depths": [1] * 4}
    outputs = [f"stage{number}" for number in range(1, 5)]
    backbone = ResNetConfig(**stages, embedding_size=8, layer_type="basic", out_features=outputs)
    parts = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = DetrConfig(
        **{**parts, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
        use_timm_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        num_queries=4,
        id2label=dict(enumerate(labels)),
    )
    _save(folder, DetrForSegmentation(config), DetrImageProcessorPil(size={"height": 64, "width": 64}))


def _save(folder: Path, model: Any, processor: Any) -> None:
    """With matrices so large that different pictures are told apart."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        if tensor.ndim > 1:
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.3
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Of different colors and shapes."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (count, 3))
    return [
        Image.fromarray(rng.integers(color // 2, color + 1, (20 + 4 * i, 24, 3), np.uint8))
        for i, color in enumerate(colors)
    ]
