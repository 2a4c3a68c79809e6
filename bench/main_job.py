"""The main job end to end, `loractl run jobs/subject.toml`, beside the published diffusers + peft recipe for the same.

    python bench/main_job.py [--steps 300] [--rounds 3] [--quick]

The recipe is that of diffusers' examples/dreambooth/train_dreambooth_lora.py, with its defaults: class pictures four at
a time, every picture read and encoded anew at every step, captions too, validation pictures one by one. Model,
pictures, number of class pictures, targets, steps, batch and precision are the same; both make as many sample pictures
before and after, and neither scores them. The job makes its class pictures in 12 steps of DPM++ 2M; the recipe here in
20 of the model's own DDIM, where it would take 50 by itself. Each side is a process of its own, imports included, and
is timed by the lines it prints as they come in: wall time, and CPU time beside it. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
JOB = ROOT / "jobs" / "subject.toml"
CLASS_STEPS, GUIDANCE, RANK, BATCH, LR = 20, 4.0, 16, 4, 1e-3
PROMPT, CLASS_PROMPT = "a picture of a sks critter", "a picture of a critter"
SAMPLES = ("a picture of a sks critter on the beach", "a picture of a sks critter in the snow")
SEEDS = (0, 1, 2, 3)
TARGET, MOST = 0.7, 0.2
Times = dict[str, float]


class Size(NamedTuple):
    """How large the job is: training steps, class pictures, steps of a sample."""

    steps: int = 300
    classes: int = 100
    sampling: int = 25


def ours(folder: Path, size: Size) -> list[str]:
    """The command."""
    settings = [f"train.steps={size.steps}", f"prior.num_images={size.classes}", f"sample.steps={size.sampling}"]
    settings.append("eval.encoders=[]")
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "loractl", "--json", "run", str(JOB), *words, "--out", str(folder / "ours")]


def stage_of(event: dict[str, Any]) -> str:
    """To what the time since the last event went."""
    if event["event"] == "started":
        return "start"
    name = event.get("stage", "")
    if name.endswith("encoded"):
        return "cache"
    if name.startswith("samples"):
        return "sample"
    return {"progress": name, "numbers": "train", "facts": "load"}.get(event["event"], "save")


def listen(command: list[str]) -> tuple[Times, float]:
    """Seconds of wall time by stage, from the lines of JSON that a process prints, and its CPU seconds."""
    spent: defaultdict[str, float] = defaultdict(float)
    last = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        now = time.perf_counter()
        stage = event["done"] if event["event"] == "recipe" else stage_of(event)
        if stage == "cache" and not spent["cache"] and not spent["load"]:
            stage = "load"  # the model comes before its first picture
        spent[stage] += now - last
        last = now
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    spent["exit"] += time.perf_counter() - last
    return {name: seconds for name, seconds in spent.items() if seconds}, usage.ru_utime + usage.ru_stime


# The recipe


def tell(stage: str) -> None:
    print(json.dumps({"event": "recipe", "done": stage}), flush=True)


def recipe(folder: Path, size: Size) -> None:
    import peft  # noqa: F401  # the recipe pays for it at its start
    import torch
    import transformers  # noqa: F401  # likewise
    from diffusers import DiffusionPipeline

    from loractl.families.pipeline import LAB

    tell("start")
    torch.manual_seed(0)

    def load() -> Any:
        pipeline = DiffusionPipeline.from_pretrained(LAB, safety_checker=None, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        tell("load")
        return pipeline

    pipeline = load()
    (folder / "class").mkdir(parents=True)
    for first in range(0, size.classes, 4):
        prompts = [CLASS_PROMPT] * min(4, size.classes - first)
        made = pipeline(prompts, num_inference_steps=CLASS_STEPS, guidance_scale=GUIDANCE).images
        for index, picture in enumerate(made):
            picture.save(folder / "class" / f"{first + index}.jpg")
    tell("class pictures")
    validate(pipeline, size.sampling)
    del pipeline
    learn(folder, size.steps)
    final = load()
    final.load_lora_weights(folder)
    validate(final, size.sampling)


def learn(folder: Path, steps: int) -> None:
    """Networks one by one, their adapter, the loop, and the adapter's file."""
    import torch
    import torch.nn.functional as F
    from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from transformers import CLIPTextModel, CLIPTokenizer

    from loractl.families.pipeline import LAB

    tokenizer = CLIPTokenizer.from_pretrained(LAB, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(LAB, subfolder="scheduler")
    text_encoder, vae, unet = (
        kind.from_pretrained(LAB, subfolder=name, dtype=torch.float32).requires_grad_(False)
        for name, kind in (("text_encoder", CLIPTextModel), ("vae", AutoencoderTiny), ("unet", UNet2DConditionModel))
    )
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets(unet)),
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR)
    rates = get_scheduler("constant", optimizer)
    batches = pairs(folder / "class", tokenizer)
    tell("load")
    for _ in range(steps):
        pixels, ids = next(batches)
        latents = vae.encode(pixels).latents * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),)).long()
        noisy = scheduler.add_noise(latents, noise, times)
        states = text_encoder(ids, return_dict=False)[0]
        predicted = unet(noisy, times, states, return_dict=False)[0]
        if scheduler.config.prediction_type == "v_prediction":
            noise = scheduler.get_velocity(latents, noise, times)
        (own, prior), (own_noise, prior_noise) = predicted.chunk(2), noise.chunk(2)
        loss = F.mse_loss(own.float(), own_noise.float()) + F.mse_loss(prior.float(), prior_noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        loss.detach().item()
    tell("train")
    layers = get_peft_model_state_dict(unet.to(torch.float32))
    StableDiffusionPipeline.save_lora_weights(save_directory=folder, unet_lora_layers=layers)
    tell("save")


def targets(unet: Any) -> list[str]:
    """The modules that the job adapts."""
    import tomllib

    from loractl.inject.targets import resolve

    return list(resolve(unet, tomllib.loads(JOB.read_text(encoding="utf-8"))["adapter"]["targets"], RANK))


def validate(pipeline: Any, steps: int) -> None:
    import torch

    for prompt in SAMPLES:
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            pipeline(prompt, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generator)
    tell("sample")


def pairs(classes: Path, tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    """Batches of subject and class pictures, read, cut and tokenized as they are needed."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    kinds = [(sorted((ROOT / "jobs/data/subject").glob("*.png")), PROMPT), (sorted(classes.glob("*")), CLASS_PROMPT)]

    class Pairs(Dataset):  # type: ignore[type-arg]  # as the recipe has it
        def __len__(self) -> int:
            return max(len(paths) for paths, _ in kinds)

        def __getitem__(self, index: int) -> list[tuple[Any, Any]]:
            return [(pixels(paths[index % len(paths)]), words(prompt)) for paths, prompt in kinds]

    def pixels(path: Path) -> Any:
        picture = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

    def words(prompt: str) -> Any:
        length = tokenizer.model_max_length
        found = tokenizer(prompt, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
        return found.input_ids[0]

    def joined(rows: list[list[tuple[Any, Any]]]) -> tuple[Any, Any]:
        flat = [row[kind] for kind in (0, 1) for row in rows]
        return torch.stack([pixel for pixel, _ in flat]), torch.stack([ids for _, ids in flat])

    while True:
        yield from DataLoader(Pairs(), batch_size=BATCH, shuffle=True, collate_fn=joined, drop_last=False)


# Side by side


def compare(size: Size, rounds: int) -> None:
    found: dict[str, list[tuple[Times, float]]] = {"ours": [], "recipe": []}
    for _ in range(rounds):
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            found["ours"].append(listen(ours(folder, size)))
            own = [sys.executable, __file__, "--part", str(folder / "recipe"), *map(str, size)]
            found["recipe"].append(listen(own))
    totals = {}
    for side, runs in found.items():
        totals[side] = statistics.median(sum(times.values()) for times, _ in runs)
        cpu = statistics.median(seconds for _, seconds in runs)
        print(f"{side}: {totals[side]:.1f} s wall, {cpu:.1f} s CPU")
        for stage in dict.fromkeys(stage for times, _ in runs for stage in times):
            seconds = statistics.median(times.get(stage, 0.0) for times, _ in runs)
            print(f"  {stage:16}{seconds:9.2f} s{seconds / totals[side]:8.0%}")
    ratio = totals["ours"] / totals["recipe"]
    print(f"ours takes {ratio:.2f} of the recipe's time; aim {TARGET}: {'met' if ratio <= TARGET else 'NOT met'}")
    times = {stage: statistics.median(t.get(stage, 0.0) for t, _ in found["ours"]) for stage in found["ours"][0][0]}
    large = [stage for stage, seconds in times.items() if stage != "train" and seconds > MOST * totals["ours"]]
    print(f"no stage but training above {MOST:.0%}: {'met' if not large else 'NOT met: ' + ', '.join(large)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        recipe(Path(sys.argv[2]), Size(*map(int, sys.argv[3:])))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Size().steps)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a job that learns nothing, in one round")
    chosen = parser.parse_args()
    whole = Size(2, 4, 1) if chosen.quick else Size(chosen.steps)
    print(f"{whole.steps} steps, load average {os.getloadavg()[0]:.1f}", flush=True)
    compare(whole, 1 if chosen.quick else chosen.rounds)
