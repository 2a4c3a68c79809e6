"""Names of modules: as loractl has them in memory, and with their dots flattened to underscores as in kohya's files.

In memory a path is a component and the module's dotted path in it, as transformers 5 and diffusers have it, but CLIP
text encoders are always without the level `text_model`: some versions and classes have it, others do not.
"""

import re

_UNET = """
    down_blocks mid_block up_blocks attentions resnets downsamplers upsamplers
    conv_in conv_out conv conv1 conv2 conv_shortcut time_emb_proj time_embedding add_embedding linear_1 linear_2
    proj_in proj_out transformer_blocks attn1 attn2 to_q to_k to_v to_out ff net proj
"""
_CLIP = "text_model text_projection encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2"

# The words between the dots, for all linears and convolutions of a UNet2DConditionModel and a CLIP text model. No
# flattened name can be cut into the words of one component in two ways (a test proves it), so all can be read back.
WORDS = {"unet": _UNET.split(), "text_encoder": _CLIP.split()}
_WORD = {
    component: re.compile(rf"({'|'.join(sorted(words, key=len, reverse=True))}|\d+)(?:_|$)")
    for component, words in WORDS.items()
}
_FLAT = re.compile(r"(text_encoder(?:_\d)?\.)(encoder\.layers\.)")
_NESTED = re.compile(r"(text_encoder(?:_\d)?\.)text_model\.")


def canonical(path: str) -> str:
    """`path` as it is in memory: without the level `text_model`."""
    return _NESTED.sub(r"\1", path, count=1)


def nested(path: str) -> str:
    """`path` as files have it: with the level `text_model` in CLIP text encoders."""
    return _FLAT.sub(r"\1text_model.\2", path, count=1)


def flatten(dotted: str) -> str:
    return dotted.replace(".", "_")


def unflatten(component: str, flat: str) -> str | None:
    """The dotted path in `component` that flattens to `flat`, or None if it is not made of the component's words."""
    words, position = [], 0
    while position < len(flat):
        found = _WORD[component].match(flat, position)
        if found is None:
            return None
        words.append(found[1])
        position = found.end()
    dotted = ".".join(words)
    return dotted if dotted and flatten(dotted) == flat else None
