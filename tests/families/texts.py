"""Language models of random weights, with tokenizers that spell words letter by letter."""

from typing import Any

from transformers import (
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny import WIDTH

LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]
NARROW = 16  # width of the language models
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5Tokenizer(vocab=[(piece, 0.0 if piece[0] == "<" else -8.0) for piece in pieces], extra_ids=0)


def qwen_tokenizer() -> Any:
    """Of bytes, with the words that frame a chat."""
    symbols = [*LETTERS, *map(chr, [*range(161, 173), *range(174, 256), *range(256, 256 + 68)])]
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate([*symbols, *words])},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=words[1:],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma_tokenizer() -> Any:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    return GemmaTokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, merges=[], padding_side="right"
    )


def t5(tokenizer: Any, width: int = WIDTH) -> Any:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=width,
        num_layers=1,
        num_heads=4,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def language_model(kind: type[Any], settings: type[Any], tokenizer: Any, layers: int = 2) -> Any:
    return kind(
        settings(
            vocab_size=len(tokenizer),
            hidden_size=NARROW,
            intermediate_size=NARROW,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )


def qwen_vl(tokenizer: Any) -> Any:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": NARROW,
        "intermediate_size": NARROW,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": NARROW}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight))
