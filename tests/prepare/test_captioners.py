"""Captioners are a hook: a stranger's is used by its name as the built-in ones are, and the lab's is right."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import loractl_captioners
import pytest
from loractl_captioners.run import Telling, scene_of
from PIL import Image

import loractl.plugins
from loractl.captioner import Captioner, CaptionerSettings, Write
from loractl.errors import JobError, PluginError
from loractl.hookspecs import hookimpl
from loractl.lab.drawing import draw
from loractl.lab.scenes import ACCENTED, EYES, PLACES, Scene, describe, sample_scene
from loractl.plugins import load_plugins
from tests.prepare.models import pictures, save_blip
from tests.test_plugins import entry

PHRASES: dict[str, Callable[[Scene], str]] = {  # what a caption says of each attribute
    "kind": lambda scene: f" {scene.kind} ",
    "color": lambda scene: f" {scene.color} {scene.shape} {scene.pattern} {scene.kind} ".replace("   ", " "),
    "accent": lambda scene: f" {scene.accent} {scene.top or ACCENTED[scene.kind]} ",
    "background": lambda scene: f" {PLACES[scene.background]} ",
    "shape": lambda scene: f" {scene.shape} {scene.pattern} ",
    "pattern": lambda scene: f" {scene.pattern} critter ",
    "top": lambda scene: f" {scene.top} ",
    "eyes": lambda scene: f" {EYES[scene.eyes]} ",
    "feet": lambda scene: f" {scene.feet} feet ",
}


def offering(*captioners: Any) -> object:
    class Plugin:
        @hookimpl
        def register_captioners(self) -> Sequence[Any]:
            return captioners

    return Plugin()


def load_colors(settings: CaptionerSettings) -> Write:
    def write(batch: Sequence[Image.Image]) -> list[str]:
        return [f"{settings.prompt} {picture.getpixel((0, 0))}" for picture in batch]

    return write


COLORS = Captioner("colors", "Tells the color of a corner.", load_colors)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The built-in captioners and a stranger's."""
    entries = [entry("colors", offering(COLORS)), entry("captioners", loractl_captioners)]
    monkeypatch.setattr(loractl.plugins, "entry_points", lambda group: entries if group == "loractl" else [])
    monkeypatch.delenv("LORACTL_PLUGINS", raising=False)
    return entries


@pytest.mark.usefixtures("installed")
def test_a_strangers_captioner_is_used_by_its_name() -> None:
    plugins = load_plugins()
    assert list(plugins.captioners) == ["colors", "lab", "transformers"]
    write = plugins.captioner("colors").load(CaptionerSettings(prompt="corner"))
    assert write([Image.new("RGB", (2, 2), "red")]) == ["corner (255, 0, 0)"]


@pytest.mark.usefixtures("installed")
def test_a_wrong_name_is_told_with_the_near_one() -> None:
    with pytest.raises(JobError, match='there is no captioner "colour"; did you mean colors'):
        load_plugins().captioner("colour")
    with pytest.raises(JobError, match='the captioner "transformers" needs a model'):
        load_plugins().captioner("transformers").load(CaptionerSettings())


FAULTS = {
    "no captioner": (offering("blip"), "loractl-faulty 1.2 offers 'blip', which is not a Captioner"),
    "no list": (SimpleNamespace(register_captioners=hookimpl(lambda: 3)), "loractl-faulty 1.2 is faulty: .*iterable"),
    "same name": (
        offering(COLORS),
        r'two plugins offer the captioner "colors": loractl-colors 1\.2 and loractl-faulty',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_named(installed: list[Any], fault: str) -> None:
    plugin, says = FAULTS[fault]
    installed.append(entry("faulty", plugin))
    with pytest.raises(PluginError, match=says):
        load_plugins()


@pytest.mark.usefixtures("installed")
def test_a_model_of_transformers_is_loaded_by_its_folder(tmp_path: Path) -> None:
    save_blip(tmp_path)
    settings = CaptionerSettings(str(tmp_path), prompt="a photo of", max_tokens=4, device="cpu", precision="fp32")
    captions = load_plugins().captioner("transformers").load(settings)(pictures(2))
    assert all(caption.startswith("a photo of ") for caption in captions)


@pytest.mark.usefixtures("installed")
def test_the_labs_captioner_is_right() -> None:
    rng = random.Random(7)
    scenes = [sample_scene(rng, "critter" if i % 2 else None) for i in range(160)]
    drawings = [draw(scene, rng, 96 if i % 10 == 0 else 64) for i, scene in enumerate(scenes)]
    captions = load_plugins().captioner("lab").load(CaptionerSettings())(drawings)
    for name, phrase in PHRASES.items():
        hits = [
            phrase(scene) in f" {caption} "
            for scene, caption in zip(scenes, captions, strict=True)
            if getattr(scene, name)
        ]
        assert sum(hits) / len(hits) >= 0.95, name


def test_the_labs_captioner_speaks_as_the_lab_does() -> None:
    critter = Scene("critter", "purple", "orange", "night", "tall", "spotted", "antenna", "1", "teal")
    said = "a purple tall spotted critter with an orange antenna and one eye and teal feet at night"
    assert describe(critter, Telling()) == said
    house = Scene("house", "red", "blue", "grass")
    reading = {**critter.attributes(), **house.attributes()}
    assert scene_of(reading) == house
    assert describe(scene_of(reading), Telling()) == "a red house with a blue roof on the grass"
