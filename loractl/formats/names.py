"""Names of modules: as loractl has them in memory, and with their dots flattened to underscores as in kohya's files.

In memory a path is a component and the module's dotted path in it, as transformers 5 and diffusers have it, but CLIP
text encoders are always without the level `text_model`: some versions and classes have it, others do not.
"""

import re

_BLOCK = """
    conv conv1 conv2 conv_shortcut time_emb_proj proj_in proj_out transformer_blocks attn1 attn2 to_q to_k to_v to_out
    ff net proj norm norm1 norm2 norm3
"""
_UNET = f"""
    down_blocks mid_block up_blocks attentions resnets downsamplers upsamplers
    conv_in conv_out conv_norm_out time_embedding add_embedding linear_1 linear_2 {_BLOCK}
"""
_SGM = f"input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection op {_BLOCK}"
_CLIP = """
    text_model text_projection encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2
    layer_norm1 layer_norm2 final_layer_norm
"""
_T5 = "encoder block layer SelfAttention DenseReluDense layer_norm final_layer_norm q k v o wi_0 wi_1 wo"

# The words between the dots, for all modules with weights of a UNet2DConditionModel, natively named or not, a CLIP text
# model and a T5 encoder. No flattened name can be cut into the words of one network in two ways (a test proves it), so
# all can be read back.
WORDS = {"unet": _UNET.split(), "sgm": _SGM.split(), "clip": _CLIP.split(), "t5": _T5.split()}
_WORD = {
    network: re.compile(rf"({'|'.join(sorted(words, key=len, reverse=True))}|\d+)(?:_|$)")
    for network, words in WORDS.items()
}
_FLAT = re.compile(r"(text_encoder(?:_\d)?\.)(encoder\.layers\.|final_layer_norm)")
_NESTED = re.compile(r"(text_encoder(?:_\d)?\.)text_model\.")

# How the modules of a network begin, where a file does not say which network they belong to.
_BEGINNINGS = {
    "unet": re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b.*"),
    "transformer": re.compile(r"(single_)?transformer_blocks\..+"),
    "text_encoder": re.compile(r"(text_model\.)?encoder\.layers\..+"),
    "text_encoder_2": re.compile(r"encoder\.block\..+"),
}


def canonical(path: str) -> str:
    """`path` as it is in memory: without the level `text_model`."""
    return _NESTED.sub(r"\1", path, count=1)


def nested(path: str) -> str:
    """`path` as files have it: with the level `text_model` in CLIP text encoders."""
    return _FLAT.sub(r"\1text_model.\2", path, count=1)


def with_component(path: str) -> str | None:
    """`path` in memory for one that lacks its component, or None if it begins like no network's."""
    for component, beginning in _BEGINNINGS.items():
        if beginning.fullmatch(path):
            return canonical(f"{component}.{path}")
    return None


def flatten(dotted: str) -> str:
    return dotted.replace(".", "_")


def unflatten(network: str, flat: str) -> str | None:
    """The dotted path in `network` that flattens to `flat`, or None if it is not made of the network's words."""
    words, position = [], 0
    while position < len(flat):
        found = _WORD[network].match(flat, position)
        if found is None:
            return None
        words.append(found[1])
        position = found.end()
    dotted = ".".join(words)
    return dotted if dotted and flatten(dotted) == flat else None
