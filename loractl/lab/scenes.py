"""The lab's world as values and words: what a picture can show, and captions that say so. All of it seeded.

A scene is one of six things in one of ten places; `describe` writes a caption that names a random part of it, and
`drawing.draw` paints it. Some critters are never shown to the lab's model (`held_out`), so that a subject is new to it.
"""

import random
from dataclasses import dataclass, replace

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (247, 208, 56),
    "green": (58, 160, 74),
    "blue": (40, 98, 214),
    "purple": (130, 60, 190),
    "pink": (245, 130, 180),
    "white": (240, 240, 240),
    "black": (40, 40, 44),
    "brown": (130, 84, 50),
    "teal": (30, 160, 160),
}
WALLS: dict[str, Color] = {
    "red wall": (190, 70, 70),
    "blue wall": (80, 120, 200),
    "yellow wall": (230, 205, 110),
    "grey wall": (150, 150, 155),
}
LANDSCAPES: dict[str, tuple[Color, Color]] = {  # above and below the horizon
    "grass": ((150, 205, 245), (110, 190, 80)),
    "beach": ((120, 200, 235), (238, 214, 150)),
    "night": ((22, 24, 66), (36, 50, 44)),
    "snow": ((190, 215, 235), (245, 248, 252)),
    "desert": ((250, 190, 120), (215, 150, 85)),
    "sea": ((170, 215, 245), (35, 110, 180)),
}
PLACES = {
    "grass": "on the grass",
    "beach": "on the beach",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "in the sea",
    **{wall: f"in front of a {wall}" for wall in WALLS},
}
SHAPES = ("round", "square", "tall", "triangular")
PATTERNS = ("plain", "striped", "spotted")
TOPS = ("horns", "antenna", "ears", "hat")
EYES = {"1": "one eye", "2": "two eyes", "3": "three eyes"}
ACCENTED = {"house": "roof", "car": "stripe", "tree": "fruit", "cup": "band", "fish": "fins"}
KINDS = ("critter", *ACCENTED)
HELD_OUT = (
    ("purple", "orange"),
    ("teal", "pink"),
    ("yellow", "blue"),
    ("red", "white"),
)  # a critter's color and accent

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "color": tuple(COLORS),
    "accent": tuple(COLORS),
    "background": tuple(PLACES),
    "shape": SHAPES,
    "pattern": PATTERNS,
    "top": TOPS,
    "eyes": tuple(EYES),
    "feet": tuple(COLORS),
}
SUBJECT_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name != "background")


@dataclass(frozen=True)
class Scene:
    """What a picture shows. The last five are a critter's own; other kinds leave them empty."""

    kind: str
    color: str
    accent: str
    background: str
    shape: str = ""
    pattern: str = ""
    top: str = ""
    eyes: str = ""
    feet: str = ""

    def attributes(self) -> dict[str, str]:
        """Name → value of what this kind of scene has."""
        return {name: getattr(self, name) for name in ATTRIBUTES if getattr(self, name)}

    def at(self, background: str) -> "Scene":
        return replace(self, background=background)


def held_out(scene: Scene) -> bool:
    """Whether the lab's model never sees this scene in training."""
    return scene.kind == "critter" and (scene.color, scene.accent) in HELD_OUT


def sample_scene(rng: random.Random, kind: str | None = None) -> Scene:
    kind = kind or rng.choice(KINDS)
    color, accent = rng.sample(list(COLORS), 2)
    scene = Scene(kind, color, accent, rng.choice(list(PLACES)))
    if kind != "critter":
        return scene
    return replace(
        scene,
        shape=rng.choice(SHAPES),
        pattern=rng.choice(PATTERNS),
        top=rng.choice(TOPS),
        eyes=rng.choice(list(EYES)),
        feet=rng.choice(list(COLORS)),
    )


def sample_training_scene(rng: random.Random, critters: float = 0.5) -> Scene:
    """A scene the model may see; the share `critters` of all are critters, on top of their turn among the kinds."""
    while True:
        scene = sample_scene(rng, "critter" if rng.random() < critters else None)
        if not held_out(scene):
            return scene


# Words


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def describe(scene: Scene, rng: random.Random, detail: float = 0.6) -> str:
    """A caption that names each attribute with a chance near `detail`."""
    return describe_and_list(scene, rng, detail)[0]


def describe_and_list(scene: Scene, rng: random.Random, detail: float = 0.6) -> tuple[str, set[str]]:
    """A caption, and the attributes it names."""
    named = {"kind"}
    if rng.random() < 0.8:
        named.add("color")
    named |= {name for name in ("shape", "pattern") if getattr(scene, name) and rng.random() < detail}
    adjectives = [getattr(scene, name) for name in ("color", "shape", "pattern") if name in named]
    text = rng.choice(["", "a picture of ", "a drawing of "]) + with_article(" ".join([*adjectives, scene.kind]))
    parts = _critter_parts(scene, rng, detail) if scene.kind == "critter" else _parts(scene, rng, detail)
    if parts:
        text += " with " + " and ".join(parts.values())
        named |= parts.keys()
        named |= {"accent"} if any(scene.accent in parts.get(name, "") for name in ("top", "accent")) else set()
    if rng.random() < 0.85:
        text += f" {PLACES[scene.background]}"
        named.add("background")
    return text, named


def _parts(scene: Scene, rng: random.Random, detail: float) -> dict[str, str]:
    part = f"{scene.accent} {ACCENTED[scene.kind]}"
    return {"accent": part if scene.kind in ("tree", "fish") else with_article(part)} if rng.random() < detail else {}


def _critter_parts(scene: Scene, rng: random.Random, detail: float) -> dict[str, str]:
    parts = {}
    if rng.random() < detail:
        top = f"{scene.accent} {scene.top}" if rng.random() < 0.7 else scene.top
        parts["top"] = with_article(top) if scene.top in ("antenna", "hat") else top
    if rng.random() < detail:
        parts["eyes"] = EYES[scene.eyes]
    if rng.random() < detail * 0.75:
        parts["feet"] = f"{scene.feet} feet"
    return parts
