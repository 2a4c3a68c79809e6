"""Makes the lab's weights from nothing: `python -m loractl.lab.train OUT`.

Four stages: a tokenizer of the captions' words, an autoencoder (64 × 64 × 3 → 16 × 16 × 4), the reader, and the
denoiser together with its text encoder. Under two hours on 2 CPU cores, minutes on a GPU. A run that was
interrupted goes on from its last checkpoint in OUT/work; every step draws its randomness from (stage, step), so it
is the run that was never interrupted.
"""

import argparse
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from loractl.device import pick_device
from loractl.lab.drawing import draw
from loractl.lab.networks import make_denoiser, make_tokenizer
from loractl.lab.reader import Reader
from loractl.lab.scenes import ATTRIBUTES, Scene, describe, sample_training_scene
from loractl.lab.trainer import Stage, Trainer

CAPTIONS = 6  # per picture

AUTOENCODER = Stage("autoencoder", steps=4000, batch=16, lr=3e-3)
READER = Stage("reader", steps=1200, batch=64, lr=2e-3, weight_decay=1e-2)
DENOISER = Stage("denoiser", steps=16500, batch=32, lr=1e-3, weight_decay=1e-2, restart=12000)
TWO_EYES = 3.0
"""How often critters with two eyes are shown after the restart, 1 being their share. One eye and three have a middle
eye in common, two have not, and are learnt last of all."""


@dataclass(frozen=True)
class World:
    """The training pictures (n, 3, 64, 64) uint8, and what they show."""

    pictures: Tensor
    scenes: Sequence[Scene]

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        return self.pictures[indices].to(device).float() / 127.5 - 1


def make_world(count: int, seed: int = 1) -> World:
    rng = random.Random(seed)
    scenes = [sample_training_scene(rng) for _ in range(count)]
    pictures = np.stack([np.asarray(draw(scene, rng)) for scene in scenes])
    return World(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), scenes)


def train_autoencoder(world: World, out: Path, device: torch.device) -> AutoencoderTiny:
    if (out / "vae").exists():
        return AutoencoderTiny.from_pretrained(out / "vae").to(device)
    torch.manual_seed(0)
    channels = (32, 32, 32)
    vae = AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    ).to(device, memory_format=torch.channels_last)

    def reconstruction_loss(rng: torch.Generator) -> Tensor:
        x = world.batch(torch.randint(0, len(world.scenes), (AUTOENCODER.batch,), generator=rng), device)
        noise = torch.randn(len(x), 4, 16, 16, generator=rng).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(x.contiguous(memory_format=torch.channels_last)).latents
            y = vae.decode(latents + 0.03 * noise).sample
        error: Tensor = y.float() - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        size: Tensor = latents.float().square().mean()
        return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 1e-3 * size

    Trainer(AUTOENCODER, [vae], out / "work").run(reconstruction_loss)
    vae = vae.to(memory_format=torch.contiguous_format)
    vae.register_to_config(scaling_factor=float(1 / encode(vae, world, device).std()))
    vae.save_pretrained(out / "vae")
    return vae


@torch.inference_mode()
def encode(vae: AutoencoderTiny, world: World, device: torch.device) -> Tensor:
    """Latents of every picture, not scaled: (n, 4, 16, 16), on the CPU."""
    chunks = torch.split(torch.arange(len(world.scenes)), 16)
    return torch.cat([vae.encode(world.batch(chunk, device)).latents.cpu() for chunk in chunks])


@torch.inference_mode()
def decode(vae: AutoencoderTiny, latents: Tensor, device: torch.device) -> Tensor:
    """Pictures of latents that are not scaled: (n, 3, 64, 64) uint8, on the CPU."""
    chunks = [vae.decode(chunk.to(device)).sample.clamp(-1, 1).cpu() for chunk in torch.split(latents, 16)]
    return torch.cat([((chunk + 1) * 127.5).round().to(torch.uint8) for chunk in chunks])


def train_reader(world: World, latents: Tensor, vae: AutoencoderTiny, out: Path, device: torch.device) -> None:
    """On drawings and on what the autoencoder makes of them, noised and shifted."""
    if (out / "reader.safetensors").exists():
        return
    torch.manual_seed(0)
    reader = Reader().to(device)
    redrawn = World(decode(vae, latents, device), world.scenes)
    targets = {
        name: torch.tensor([values.index(v) if (v := getattr(scene, name)) else -100 for scene in world.scenes]).to(
            device
        )
        for name, values in ATTRIBUTES.items()
    }
    held = 1000

    def loss(rng: torch.Generator) -> Tensor:
        indices = torch.randint(0, len(world.scenes) - held, (READER.batch,), generator=rng)
        first = torch.rand(len(indices), 1, 1, 1, generator=rng).to(device) < 0.4
        x = torch.where(first, world.batch(indices, device), redrawn.batch(indices, device))
        x = x + 0.08 * torch.rand(1, generator=rng).item() * torch.randn(x.shape, generator=rng).to(device)
        down, right = torch.randint(-3, 4, (2,), generator=rng).tolist()
        logits = reader(x.roll((down, right), (2, 3)))
        losses = [F.cross_entropy(logits[name], targets[name][indices], ignore_index=-100) for name in ATTRIBUTES]
        return torch.stack(losses).sum()

    Trainer(READER, [reader.train()], out / "work").run(loss)
    reader.eval()
    for kind, pictures in (("drawn", world), ("through the autoencoder", redrawn)):
        with torch.inference_mode():
            logits = reader(pictures.batch(torch.arange(len(world.scenes) - held, len(world.scenes)), device))
        right = {
            n: (logits[n].argmax(1) == targets[n][-held:])[targets[n][-held:] >= 0].float().mean().item()
            for n in ATTRIBUTES
        }
        print(f"reader, {kind}:", {name: round(value, 3) for name, value in right.items()}, flush=True)
    save_file(
        {name: tensor.half().contiguous() for name, tensor in reader.state_dict().items()}, out / "reader.safetensors"
    )


def train_denoiser(rank: int, processes: int, out: Path, device: torch.device) -> None:
    """Predicts v (Salimans & Ho 2022) with the text encoder learnt along; one caption in ten is dropped.

    On a CPU several processes of one thread share each batch: on networks this small two of them
    take 0.33 s a step where one process with two threads takes 0.39 s.
    """
    if processes > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{out.absolute()}/work/meeting", rank=rank, world_size=processes)
    torch.manual_seed(0)
    data = torch.load(out / "work" / "data.pt", weights_only=True)
    latents, captions = data["latents"], data["captions"]  # (n, 4, 16, 16), scaled; (n, CAPTIONS, tokens)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    unet, text_encoder, scheduler = make_denoiser(tokenizer)
    unet.to(device), text_encoder.to(device)
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    trainer = Trainer(DENOISER, [unet, text_encoder], out / "work")
    has_two_eyes = (captions == tokenizer.convert_tokens_to_ids("two</w>")).flatten(1).any(1)
    later = torch.where(has_two_eyes, TWO_EYES, 1.0)

    def loss(rng: torch.Generator) -> Tensor:
        if trainer.step < DENOISER.restart:
            indices = torch.randint(0, len(latents), (DENOISER.batch,), generator=rng)
        else:
            indices = torch.multinomial(later, DENOISER.batch, replacement=True, generator=rng)
        tokens = captions[indices, torch.randint(0, CAPTIONS, (len(indices),), generator=rng)]
        tokens = torch.where(torch.rand(len(indices), 1, generator=rng) < 0.1, empty, tokens)
        x, noise = latents[indices], torch.randn(len(indices), 4, 16, 16, generator=rng)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(indices),), generator=rng)
        noisy, target = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        noisy, target, t, tokens = (each[rank::processes].to(device) for each in (noisy, target, t, tokens))
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            v = unet(noisy, t, text_encoder(tokens)[0]).sample
        return F.mse_loss(v.float(), target)

    trainer.run(loss)
    if rank == 0:
        parts = {"unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
        nothing: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        vae = AutoencoderTiny.from_pretrained(out / "vae")
        vae.register_to_config(_name_or_path="")  # a published file does not tell where it was made
        StableDiffusionPipeline(vae=vae, **parts, **nothing).to(dtype=torch.float16).save_pretrained(out)


def train(out: Path, count: int, device: torch.device, processes: int) -> None:
    (out / "work").mkdir(parents=True, exist_ok=True)
    if not (out / "work" / "data.pt").exists():
        prepare(out, count, device)
    (out / "work" / "meeting").unlink(missing_ok=True)
    if processes == 1:
        train_denoiser(0, 1, out, device)
    else:
        spawn(train_denoiser, (processes, out, device), nprocs=processes)


def prepare(out: Path, count: int, device: torch.device) -> None:
    """Everything before the denoiser; what it learns from goes to OUT/work/data.pt."""
    world, rng = make_world(count), random.Random(2)
    captions = [[describe(scene, rng) for _ in range(CAPTIONS)] for scene in world.scenes]
    tokenizer = make_tokenizer([caption for several in captions for caption in several], out / "tokenizer")
    tokenize = partial(tokenizer, padding="max_length", truncation=True, return_tensors="pt")
    vae = train_autoencoder(world, out, device)
    latents = encode(vae, world, device)
    error = (decode(vae, latents[:1000], device).float() - world.pictures[:1000].float()).square().mean().item()
    print(f"autoencoder: {10 * math.log10(255**2 / error):.1f} dB", flush=True)
    train_reader(world, latents, vae, out, device)
    tokens = torch.stack([tokenize(several).input_ids for several in captions])
    data = {"latents": latents * vae.config.scaling_factor, "captions": tokens}
    torch.save(data, out / "work" / "data.tmp")
    (out / "work" / "data.tmp").replace(out / "work" / "data.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pipeline, the reader and, under work/, the checkpoints")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--processes", type=int, help="that share the denoiser's batches")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    processes = arguments.processes or (min(2, os.cpu_count() or 1) if device.type == "cpu" else 1)
    train(arguments.out, arguments.pictures, device, processes)


if __name__ == "__main__":
    main()
