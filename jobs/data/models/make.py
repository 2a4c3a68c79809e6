"""Makes the three model folders beside it, which the jobs distill and extract work on: a handful of layers each.

`tuned` is `base` plus updates of rank 2; `worn` is the base as it is saved while it wears an adapter of peft.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from loractl.formats.safefile import write_tensors

FOLDER = Path(__file__).parent
FILES = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
SHAPES = {
    "unet": {
        f"{BLOCK}.attn1.to_q": (16, 16),
        f"{BLOCK}.attn2.to_k": (16, 24),
        "mid_block.resnets.0.conv1": (8, 16, 3, 3),
        "mid_block.resnets.0.conv2": (8, 8, 3, 3),
    },
    "text_encoder": {"text_model.encoder.layers.0.self_attn.q_proj": (24, 24)},
}
UNCHANGED = "mid_block.resnets.0.conv2"
RANK = 2


def write(name: str, component: str, tensors: dict[str, Tensor]) -> None:
    folder = FOLDER / name / component
    folder.mkdir(parents=True, exist_ok=True)
    (FOLDER / name / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}) + "\n")
    write_tensors(folder / f"{FILES[component]}.safetensors", tensors, {"format": "pt"}, overwrite=True)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    for component, shapes in SHAPES.items():
        base = {f"{path}.weight": torch.randn(shape, generator=generator) / 5 for path, shape in shapes.items()}
        tuned, worn = dict(base), {}
        for path, (out, *inner) in shapes.items():
            up, down = (torch.randn(s, generator=generator) / 10 for s in ((out, RANK), (RANK, *inner)))
            weight = base[f"{path}.weight"]
            if path != UNCHANGED:
                tuned[f"{path}.weight"] = weight + (up @ down.flatten(1)).view(weight.shape)
            worn[f"{path}.base_layer.weight"] = weight
            worn[f"{path}.lora_A.default.weight"] = down
            worn[f"{path}.lora_B.default.weight"] = up.view(out, RANK, *[1] * (len(inner) - 1))
        for name, tensors in (("base", base), ("tuned", tuned), ("worn", worn)):
            write(name, component, tensors)
