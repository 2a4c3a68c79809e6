"""How well the lab's model follows captions, as its reader sees it: `python -m loractl.lab.score [WEIGHTS]`."""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import torch

from loractl.families.pipeline import LAB, LAB_GUIDANCE
from loractl.lab.reader import load_reader, read
from loractl.lab.scenes import ATTRIBUTES, describe_and_list, sample_training_scene
from loractl.sample.denoise import Request, render

REQUIRED = {"kind": 0.98, "background": 0.99, "color": 0.97, "pattern": 0.85, "top": 0.85, "eyes": 0.85}


def score(weights: Path, count: int, seed: int = 7) -> dict[str, tuple[int, float]]:
    """Attribute → (samples whose caption names it, share of them read as named), over `count` sampled captions."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(weights, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    rng = random.Random(seed)
    scenes = [sample_training_scene(rng) for _ in range(count)]
    captions = [describe_and_list(scene, rng) for scene in scenes]
    requests = [Request(text, i, 20, LAB_GUIDANCE, 64) for i, (text, _) in enumerate(captions)]
    pictures = list(
        render(pipeline, requests, 32, lambda done, total: print(f"\r{done / total:4.0%}", end="", flush=True))
    )
    hits: dict[str, list[bool]] = defaultdict(list)
    readings = read(load_reader(weights / "reader.safetensors"), pictures)
    for scene, (_, named), reading in zip(scenes, captions, readings, strict=True):
        for name in named:
            hits[name].append(reading[name] == getattr(scene, name))
    return {name: (len(hits[name]), sum(hits[name]) / len(hits[name])) for name in ATTRIBUTES if hits[name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, nargs="?", default=LAB)
    parser.add_argument("--prompts", type=int, default=400)
    arguments = parser.parse_args()
    found = score(arguments.weights, arguments.prompts)
    print("\rattribute    named  read right  required")
    for name, (count, share) in found.items():
        required = f"{REQUIRED[name]:.2f} {'met' if share >= REQUIRED[name] else 'NOT met'}" if name in REQUIRED else ""
        print(f"{name:12} {count:5}  {share:10.3f}  {required}")


if __name__ == "__main__":
    main()
