"""`loractl ppim` on photographs of 12 megapixels, beside a plain Pillow loop and beside the way of sd-scripts.

    nice python bench/ppim.py --count 1000

Makes the photographs in a temporary folder (about 3 MB each; --folder keeps them): twenty of noise and smooth color,
each written many times with another comment in its header, so that every file has its own hash and is decoded for
itself. All sides make squares of 512 pixels, written as PNG by the same call with the same effort. The plain loop
opens, converts, decodes in full, crops, resizes (Lanczos) and saves. The other does what sd-scripts publishes: a full
decode into an array, from there back to Pillow for the resize, and cropped as an array. Both measure nothing; ours
runs as it comes, with its checks, thumbnails, table, page and sheet. Every row is a process of its own. Memory is the
peak of the whole process tree (Linux; pages that processes share count once for each).
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

WIDE, HIGH, SIZE = 4000, 3000, 512
DISTINCT = 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Cost(NamedTuple):
    seconds: float
    megabytes: float


def make(folder: Path, count: int) -> None:
    """The photographs; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = [photograph(seed) for seed in range(min(DISTINCT, count))]
    for number in range(count):
        path, data = folder / f"{number:05d}.jpg", originals[number % DISTINCT]
        if not path.is_file():
            comment = f"number {number}".encode()
            path.write_bytes(data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + data[2:])


def photograph(seed: int) -> bytes:
    """A JPEG of smooth colors under noise of two sizes."""
    from io import BytesIO

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)).resize((WIDE, HIGH)), np.int16
        )
        for wide, high in ((8, 6), (1000, 750))
    ]
    noise = rng.integers(-6, 7, (HIGH, WIDE, 1), dtype=np.int16)
    pixels = (layers[0] + (layers[1] - 128) // 4 + noise).clip(0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def plain(folder: Path, out: Path) -> None:
    from PIL import Image

    from loractl.prepare.write import encode

    for path in sorted(folder.iterdir()):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        left, top = (picture.width - picture.height) // 2, 0
        square = picture.crop((left, top, left + picture.height, picture.height))
        made = square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        (out / f"{path.stem}.png").write_bytes(encode(made, "png", 95))


def sd_scripts(folder: Path, out: Path) -> None:
    import numpy as np
    from PIL import Image

    from loractl.prepare.write import encode

    for path in sorted(folder.iterdir()):
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"), np.uint8)
        scale = SIZE / min(pixels.shape[:2])
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        left = (pixels.shape[1] - SIZE) // 2
        made = Image.fromarray(np.ascontiguousarray(pixels[:SIZE, left : left + SIZE]))
        (out / f"{path.stem}.png").write_bytes(encode(made, "png", 95))


THEIRS: dict[str, Callable[[Path, Path], None]] = {"plain": plain, "sd-scripts": sd_scripts}


def measure(*command: str) -> Cost:
    """What a command takes, its children included."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], sum(map(resident, tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    return Cost(time.perf_counter() - began, peak[0])


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended, or this is no Linux
        return
    for child in children:
        yield from tree(int(child))


def resident(pid: int) -> float:
    """Megabytes in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError):
        return 0.0


def theirs(name: str, photos: Path, folder: Path) -> Cost:
    out = folder / name
    out.mkdir()
    return measure(sys.executable, __file__, "--one", name, "--folder", str(photos), "--out", str(out))


def ours(workers: int, photos: Path, folder: Path) -> Cost:
    out = folder / f"ours-{workers}-{photos.name}"
    words = ("ppim", str(photos), str(out), "--size", str(SIZE), "--crop", "center", "--workers", str(workers))
    cost = measure(sys.executable, "-m", "loractl", *words)
    made = len(list((out / "images").iterdir()))
    assert made == len(list(photos.iterdir())), f"{made} pictures were made"
    return cost


def compare(count: int, few: int, root: Path, scratch: Path) -> None:
    photos, some = root / "all", root / "some"
    make(photos, count)
    make(some, few)
    costs = {name: theirs(name, photos, scratch) for name in THEIRS}
    costs |= {f"ppim, {workers} workers": ours(workers, photos, scratch) for workers in (1, 2)}
    for name, cost in costs.items():
        ratio = costs["plain"].seconds / cost.seconds
        print(
            f"{name:16} {count / cost.seconds:7.2f} images/s  {ratio:5.2f} × plain  {cost.megabytes:6.0f} MB",
            flush=True,
        )
    small = ours(2, some, scratch)
    print(f"memory of ppim on 2 workers: {small.megabytes:.0f} MB for {few}, {cost.megabytes:.0f} MB for {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--few", type=int, default=100, help="the smaller number, for memory")
    parser.add_argument("--folder", type=Path, help="where the photographs are kept")
    parser.add_argument("--one", choices=THEIRS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.one:
        THEIRS[given.one](given.folder, given.out)
        return
    with TemporaryDirectory() as scratch:
        compare(given.count, min(given.few, given.count), given.folder or Path(scratch, "photos"), Path(scratch))


if __name__ == "__main__":
    main()
