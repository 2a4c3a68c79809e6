"""What a person writes of a grid, and which pictures those are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from loractl_grid.command import grid
from loractl_grid.run import Wardrobe, common
from loractl_grid.shots import BATCH, Worn, axes, batches, plan
from loractl_grid.spec import GridSpec

from loractl.errors import JobError, MismatchError
from loractl.job import dump_job, read_job
from loractl.method import Method
from loractl.ranges import numbers
from loractl.sample.denoise import Request
from tests.methods.lab_job import JOBS

ONE, TWO = (JOBS / f"data/adapters/{name}.safetensors" for name in ("one", "two"))
METHODS: Any = {"grid": Method("grid", "", GridSpec, lambda *_: None)}  # type: ignore[arg-type,return-value]
MODEL: Any = SimpleNamespace(
    guidance=4.0,
    resolution=64,
    multiple=1,
    denoiser_name="unet",
    is_inpainting=False,
    pipeline=SimpleNamespace(vae_scale_factor=4),
)
PROMPT = "a picture of a red critter in the snow"


# --- what a person writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1..4", (1, 2, 3, 4)),
        ("0:1:0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("0:1:0.1", tuple(tenth / 10 for tenth in range(11))),
        ("1:0:-0.5", (1, 0.5, 0)),
        ("0:1:0.4", (0, 0.4, 0.8)),
        ("-1, .5,2..3", (-1, 0.5, 2, 3)),
        ("7..7", (7,)),
    ],
)
def test_a_range_is_its_numbers(text: str, meant: tuple[float, ...]) -> None:
    assert numbers(text) == meant


@examples(deadline=None)
@given(st.integers(-50, 50), st.integers(0, 50), st.integers(1, 9))
def test_ranges_of_whole_numbers_are_whole_and_have_both_ends(first: int, count: int, step: int) -> None:
    last = first + count * step
    found = numbers(f"{first}:{last}:{step}")
    assert found == tuple(range(first, last + 1, step)) and {*map(type, found)} == {int}
    assert numbers(f"{first}..{first + count}") == tuple(range(first, first + count + 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "neither a number nor a range"),
        ("1,,2", "neither a number nor a range"),
        ("1e9", "neither a number nor a range"),
        ("nan", "neither a number nor a range"),
        ("0:1", "neither a number nor a range"),
        ("4..1", "no numbers: mind the step"),
        ("0:1:-0.1", "no numbers: mind the step"),
        ("0:1:0", "no numbers: mind the step"),
        ("0..1000", "more than 1000 numbers"),
        ("0:1:0.0000001", "more than 1000 numbers"),
    ],
)
def test_what_is_no_range_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        numbers(text)


def test_the_command_writes_the_job() -> None:
    words = grid(
        x="weight=0:1:0.5",
        y="seed=1..2",
        z=f"adapter={ONE}, {TWO}",
        prompt="a picture of a red critter with horns in the snow",
        steps=10,
    )
    assert words == read_job(JOBS / "grid.toml", METHODS)


def test_a_job_says_its_ranges_as_text_or_as_lists_and_its_paths_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    head = 'method = "grid"\nmodel = "lab"\nsample.prompt = "x"\ngrid.z.checkpoint = ["a.safetensors"]\n'
    specs = []
    for name, axis in (("text", '"0:1:0.5"'), ("list", "[0, 0.5, 1]")):
        (tmp_path / f"{name}.toml").write_text(f'{head}name = "n"\ngrid.x.weight = {axis}\n')
        specs.append(read_job(tmp_path / f"{name}.toml", METHODS))
    assert specs[0] == specs[1]
    (tmp_path / "again.toml").write_text(dump_job(specs[0]))
    again: Any = read_job(tmp_path / "again.toml", METHODS)
    assert again == specs[0] and again.grid.z.checkpoint == (tmp_path / "a.safetensors",)


def test_a_text_with_a_comma_stands_in_quotes() -> None:
    assert grid(x='prompt="a cat, red",a dog').grid.x.prompt == ("a cat, red", "a dog")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"x": "weight=0:1"}, r'^--x: "0:1" is neither a number nor a range'),
        ({"x": "seed=1,1"}, "^--x: 1 is given twice"),
        ({"x": "seed=0.5"}, '^--x: expected a list of whole numbers, found the text "0.5"$'),
        ({"x": "prompt="}, "^--x: an axis needs at least one value$"),
        ({"x": "seed=-1"}, "^--x: .*greater than or equal to 0"),
        ({"x": "seeds=1"}, r"^--x: unknown key; did you mean grid\.x\.seed\?"),
        ({"x": "weight=0,1"}, "an axis of weights needs adapters, or their files along another axis"),
        ({"x": "schedule=0:1"}, "an axis of schedules needs adapters, or their files along another axis"),
        ({"x": "schedule=0:1,x:0"}, '^--x: "0:1,x:0" is not like 0:0.2,0.5:1 or linear:0:1,1:0'),
        ({"x": "schedule=0.5:1,0:0"}, "^--x: the places should rise, and 0 comes after 0.5"),
        ({"x": "schedule=1/0:1"}, "^--x: 0:1 is given twice"),
        ({"x": "seed=1", "y": "seed=2"}, "two axes say seed"),
        ({"x": f"adapter={ONE}", "y": f"checkpoint={TWO}"}, "two axes say adapter, or checkpoint, which is the same"),
        ({"x": "adapter=no.safetensors"}, r"^--x: there is no file or folder .*no\.safetensors"),
        ({"x": "seed=1", "prompt": None}, "say what the pictures show"),
    ],
)
def test_what_makes_no_grid_is_refused_before_anything_is_loaded(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        grid(**{"prompt": PROMPT, **settings})


def test_schedules_are_written_in_one_text_as_a_list_or_as_tables(tmp_path: Path) -> None:
    texts = ("1", "0:1,0.5:0", "cosine:sigma:0.5:1,14:0")
    asked = grid(x=f"schedule={'/'.join(texts)}", prompt="x", adapter=[str(ONE)])
    listed = ", ".join(f'"{text}"' for text in texts[:2])
    table = '{ points = [[0.5, 1], [14, 0]], shape = "cosine", over = "sigma" }'
    head = f'method = "grid"\nmodel = "lab"\nsample.prompt = "x"\nadapters = [{{ path = "{ONE}" }}]\n'
    (tmp_path / "grid.toml").write_text(f"{head}grid.x.schedule = [{listed}, {table}]\n")
    read: Any = read_job(tmp_path / "grid.toml", METHODS)
    assert read.grid == asked.grid
    assert axes(asked)[0].labels == ("0:1", "0:1,0.5:0", "cosine:sigma:0.5:1,14:0")
    (tmp_path / "again.toml").write_text(dump_job(read))
    assert read_job(tmp_path / "again.toml", METHODS).grid == asked.grid  # type: ignore[attr-defined]


def test_a_runs_folder_is_all_that_it_wrote_in_its_order(tmp_path: Path) -> None:
    def files(*names: str) -> tuple[str, ...]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        found = grid(x=f"checkpoint={folder}", prompt="x").grid.x.checkpoint or ()
        return tuple(file.relative_to(folder).as_posix() for file in found)

    kohya = ("v2-000002.safetensors", "v2-000010.safetensors", "v2.safetensors")
    assert files(*kohya[::-1]) == kohya
    theirs = tuple(f"{part}pytorch_lora_weights.safetensors" for part in ("checkpoint-90/", "checkpoint-500/", ""))
    assert files(*theirs) == theirs
    ours = ("adapters/step-000250.safetensors", "cat.safetensors")
    others = ("pytorch_lora_weights.safetensors", "embeddings/s.safetensors", "s.learned_embeds.safetensors")
    assert files(*ours, *others, "checkpoints/step-000250/state.safetensors", ".tmp/x.safetensors") == ours
    with pytest.raises(JobError, match=r"^--x: there is no adapter in .*: name the folder of a run"):
        files("checkpoints/step-000250/state.safetensors")


# --- which pictures those are ----------------------------------------------------------------------------------------


def test_every_place_asks_for_what_its_axes_say() -> None:
    spec = grid(x="steps=2,5", y="prompt=a cat,a dog", z="guidance=1,7", seed=9, size=32)
    shots = plan(spec, MODEL)
    assert [shot.request for shot in shots] == [
        Request(prompt, 9, steps, guidance, (32, 32))
        for guidance in (1, 7)
        for prompt in ("a cat", "a dog")
        for steps in (2, 5)
    ]
    assert shots[1].file == Path("out/grid/pictures/z1-y1-x2.png")
    assert len({shot.file for shot in shots}) == len(shots)
    assert [axis.labels for axis in axes(spec)] == [("2", "5"), ("a cat", "a dog"), ("1", "7")]


def test_a_weight_is_for_the_file_on_an_axis_or_else_for_all() -> None:
    both = plan(grid(x="weight=0,0.5", prompt="x", adapter=[str(ONE), f"{TWO}=0.8"]), MODEL)
    assert [shot.uses for shot in both] == [(Worn(ONE, 0.0), Worn(TWO, 0.0)), (Worn(ONE, 0.5), Worn(TWO, 0.5))]
    own = plan(grid(x="weight=0,0.5", y=f"adapter={TWO}", prompt="x", adapter=[f"{ONE}=0.8"]), MODEL)
    assert [shot.uses for shot in own] == [(Worn(ONE, 0.8), Worn(TWO, 0.0)), (Worn(ONE, 0.8), Worn(TWO, 0.5))]
    plain = plan(grid(x="seed=1", prompt="x", adapter=[f"{ONE}=0.8"]), MODEL)
    assert [shot.uses for shot in plain] == [(Worn(ONE, 0.8),)]


def test_a_schedule_is_for_the_same_adapters_as_a_weight() -> None:
    both = plan(grid(x="schedule=1/0:1,0.5:0", y="weight=0.5,1", prompt="x", adapter=[str(ONE)]), MODEL)
    assert [shot.uses for shot in both] == [(Worn(ONE, w, s),) for w in (0.5, 1.0) for s in ("0:1", "0:1,0.5:0")]
    own = plan(grid(x="schedule=linear:0:0,1:1", y=f"adapter={TWO}", prompt="x", adapter=[str(ONE)]), MODEL)
    assert [shot.uses for shot in own] == [(Worn(ONE, 1.0), Worn(TWO, 1.0, "linear:0:0,1:1"))]


def test_the_page_says_what_its_pictures_have_in_common(tmp_path: Path) -> None:
    def facts(**settings: Any) -> dict[str, object]:
        spec = grid(prompt="a cat", adapter=[f"{ONE}=0.8"], **settings)
        return common(spec, plan(spec, MODEL)[0])

    same = {"model": "lab", "prompt": "a cat", "steps": 25, "guidance": 4.0, "size": 64}
    assert facts(x="seed=1,2", y=f"adapter={TWO}", z="weight=0,1") == {**same, "adapters": "one 0.8"}
    assert facts(x="weight=0,1") == {**same, "seed": 42, "adapters": "one"}
    (tmp_path / "model_index.json").touch()
    assert facts(x="steps=1,2", model=str(tmp_path))["model"] == tmp_path.name


def test_what_is_rendered_together_is_alike_and_nothing_is_left_out() -> None:
    shots = plan(grid(x=f"adapter={TWO},{ONE}", y="steps=2,3", z="seed=1..5", prompt="x"), MODEL)
    groups = batches(shots)
    assert sorted(shot.file for group in groups for shot in group) == sorted(shot.file for shot in shots)
    assert all(len(group) <= BATCH and len({shot.alike() for shot in group}) == 1 for group in groups)
    files = [group[0].uses[0].file for group in groups]
    assert files == sorted(files), "each adapter is put on once"
    assert batches(shots[::-1]) != [] and len(groups) == 2 * 2 * 2


def test_adapters_of_one_name_are_all_told(tmp_path: Path) -> None:
    """In different folders, as runs write them."""
    files = [tmp_path / folder / "adapter.safetensors" for folder in ("one", "two")]
    wardrobe = Wardrobe(MODEL, allow_pickle=False)
    wardrobe.worn = {"adapter0": files[0], "adapter1": files[1]}
    wardrobe.changing = {*wardrobe.worn}
    assert wardrobe.weights((Worn(files[0], 0.5), Worn(files[1], 0.7))) == {"adapter": 0.5, "adapter-2": 0.7}


def test_a_model_for_inpainting_paints_all_over() -> None:
    model = SimpleNamespace(**{**vars(MODEL), "is_inpainting": True})
    (shot,) = plan(grid(x="seed=1", prompt="x"), model)  # type: ignore[arg-type]  # as far as a plan looks at it
    canvas = shot.request.canvas
    assert canvas and canvas.mask and canvas.mask.getextrema() == (255, 255)
    assert canvas.strength == 1 and canvas.mask.size == canvas.picture.size == (64, 64)


def test_a_size_that_the_model_does_not_draw_is_told() -> None:
    with pytest.raises(MismatchError, match=r"a multiple of 8 pixels: set sample\.size = 96, not 100"):
        plan(grid(x="seed=1", prompt="x", size=100), MODEL)
