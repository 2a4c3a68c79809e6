"""Bake and distill on a model of Stable Diffusion 1.5's size, beside the algorithm that sd-scripts publishes.

    nice python bench/checkpoints.py [FOLDER]

Makes random fp16 checkpoints of 2.1 GB in a temporary folder (below FOLDER) and deletes them. Every row is a process of
its own, on one thread; memory is its ru_maxrss. The other side is that algorithm, written here: the whole model in
memory in fp32, its dense update, one save; and for distillation a full SVD of each difference, of which one for each
shape is run and multiplied.
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import NamedTuple

RANK = 8
NEEDED = 10 * 10**9
SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


class Cost(NamedTuple):
    wall: float
    cpu: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.wall:8.1f} s wall {self.cpu:8.1f} s CPU {self.megabytes:8.0f} MB"


def measure(*command: str) -> Cost:
    """What a command takes, as its own process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def make(folder: Path) -> None:
    """base, tuned (another weight in each of the 264 modules that kohya adapts) and an adapter for these."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from loractl.formats import save_adapter
    from loractl.formats.checkpoint import model_weights
    from loractl.formats.safefile import write_tensors
    from loractl.formats.sgm import to_sgm
    from loractl.tensors.adapter import Adapter
    from loractl.tensors.lowrank import LowRank

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        sides = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **sides)
    shapes = {f"first_stage_model.{key}": tensor.shape for key, tensor in vae.state_dict().items()}
    shapes |= {f"cond_stage_model.transformer.text_model.{key}": t.shape for key, t in text.state_dict().items()}
    for key, tensor in unet.state_dict().items():
        path, _, part = key.rpartition(".")
        shapes[f"model.diffusion_model.{to_sgm(path)}.{part}"] = tensor.shape
    generator = torch.Generator().manual_seed(0)
    tensors = {key: (torch.randn(shape, generator=generator) / 50).half() for key, shape in shapes.items()}
    write_tensors(folder / "base.safetensors", tensors, {})
    modules = {}
    for path, weight in model_weights(folder / "base.safetensors").items():
        if path.endswith(SUFFIXES) or path.startswith("text_encoder."):
            down = torch.randn(RANK, *weight.shape[1:], generator=generator) / 50
            up = torch.randn(weight.shape[0], RANK, *[1] * (len(weight.shape) - 2), generator=generator) / 50
            modules[path] = LowRank(down, up, RANK / 2)
            noise = torch.randn(weight.shape, generator=generator) / 1000
            tensors[weight.key] = (tensors[weight.key].float() + noise).half()
    write_tensors(folder / "tuned.safetensors", tensors, {})
    save_adapter(folder / "adapter.safetensors", Adapter(modules), "kohya", name="bench")
    print(f"{len(shapes)} tensors, {len(modules)} modules in the adapter")


def copy(folder: Path) -> None:
    """The least that a new file takes: read, write, sync."""
    with (folder / "base.safetensors").open("rb") as source, (folder / "copy.safetensors").open("wb") as target:
        shutil.copyfileobj(source, target, 2**22)
        target.flush()
        os.fsync(target.fileno())


def peer_bake(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from loractl.formats import load_adapter
    from loractl.formats.checkpoint import model_weights

    keys = {path: weight.key for path, weight in model_weights(folder / "base.safetensors").items()}
    model = {key: tensor.float() for key, tensor in load_file(folder / "base.safetensors").items()}
    for path, low in load_adapter(folder / "adapter.safetensors").modules.items():
        weight = model[keys[path]]
        up, down = low.up.float().flatten(1), low.down.float().flatten(1)
        model[keys[path]] = weight + 0.7 * low.scale * (up @ down).view(weight.shape)
    save_file({key: tensor.half() for key, tensor in model.items()}, folder / "peer.safetensors")


def peer_distill(folder: Path) -> None:
    """Writes the CPU seconds of the whole, of which loading is measured and the SVDs are scaled up."""
    import torch
    from safetensors.torch import load_file

    from loractl.formats.checkpoint import model_weights

    began = time.process_time()
    tuned, base = (load_file(folder / f"{name}.safetensors") for name in ("tuned", "base"))
    weights = model_weights(folder / "base.safetensors")
    changed = [weights[path] for path in weights if not torch.equal(tuned[weights[path].key], base[weights[path].key])]
    counts = Counter(weight.shape for weight in changed)
    examples = {weight.shape: weight.key for weight in changed}
    seconds = time.process_time() - began
    for shape, key in examples.items():
        began = time.process_time()
        torch.linalg.svd((tuned[key].float() - base[key].float()).flatten(1))
        seconds += counts[shape] * (time.process_time() - began)
    (folder / "peer-distill.txt").write_text(str(seconds), encoding="utf-8")


PARTS: dict[str, Callable[[Path], None]] = {each.__name__: each for each in (make, copy, peer_bake, peer_distill)}


def compare(folder: Path) -> None:
    own = (sys.executable, __file__, "--part")
    tool = (sys.executable, "-m", "loractl", "--quiet")
    base, tuned, adapter = (str(folder / f"{name}.safetensors") for name in ("base", "tuned", "adapter"))
    baked, distilled = str(folder / "baked.safetensors"), str(folder / "distilled.safetensors")
    measure(*own, "make", str(folder))
    print(f"checkpoint of {Path(base).stat().st_size / 1e9:.2f} GB, load average {os.getloadavg()[0]:.1f}", flush=True)
    start = measure(sys.executable, "-c", "import torch")
    print(f"import torch       {start}", flush=True)
    copied = measure(*own, "copy", str(folder))
    print(f"copy the file      {copied}", flush=True)
    Path(folder, "copy.safetensors").unlink()
    ours = measure(*tool, "bake", base, adapter, "--weight", "0.7", "--out", baked)
    print(f"bake               {ours}", flush=True)
    Path(baked).unlink()
    theirs = measure(*own, "peer_bake", str(folder))
    print(f"  sd-scripts' way  {theirs}", flush=True)
    Path(folder, "peer.safetensors").unlink()
    print(
        f"  {theirs.megabytes / ours.megabytes:.1f} times less memory, {theirs.wall / ours.wall:.1f} times faster "
        f"({theirs.cpu / ours.cpu:.1f} in CPU time), {ours.wall / copied.wall:.1f} times as long as the copy"
    )
    ours = measure(*tool, "distill", tuned, base, "--rank", str(RANK), "--out", distilled)
    print(f"distill            {ours}", flush=True)
    theirs = measure(*own, "peer_distill", str(folder))
    scaled = float(Path(folder, "peer-distill.txt").read_text(encoding="utf-8"))
    print(f"  sd-scripts' way  {scaled:24.1f} s CPU {theirs.megabytes:8.0f} MB (SVDs scaled from one for each shape)")
    print(f"  {scaled / ours.cpu:.1f} times less CPU time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        PARTS[sys.argv[2]](Path(sys.argv[3]))
    else:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else gettempdir())
        if shutil.disk_usage(place).free < NEEDED:
            sys.exit(f"{place} has less than {NEEDED / 1e9:.0f} GB free")
        with TemporaryDirectory(dir=place) as scratch:
            compare(Path(scratch))
