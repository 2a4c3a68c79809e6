"""What a job may say: the root and the sections that most methods share, as frozen models that refuse unknown keys.

A method's spec is a subclass of `Spec` made of these and, where it trains, of those in `sections`. Everything that can
be judged without torch is judged here, and a spec goes no further than its plugin's `run`. Relative paths of a job file
are relative to its folder (`InputPath`).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails

import loractl
from loractl.errors import did_you_mean
from loractl.ranges import numbers, sides
from loractl.samplers import SAMPLERS, find_sampler

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[str, Field(pattern=r"^\S+$")]
Seed = Annotated[int, Field(ge=0)]


def _ranges(value: Any) -> Any:
    """A list of numbers and texts as the numbers they stand for; from here on nothing counts as JSON."""
    if not isinstance(value, list):
        return value
    return tuple(seed for part in value for seed in (numbers(part) if isinstance(part, str) else (part,)))


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_ranges, json_schema_input_type=tuple[Seed | str, ...])]


def _absolute(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return Path(base, path.expanduser()) if base is not None else path.expanduser()


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    return path


def _named(path: Any) -> Any:
    """Refuses the empty text, which Path takes for the current folder."""
    if path == "":
        raise ValueError("the path is empty")
    return path


AnyPath = Annotated[Path, BeforeValidator(_named), AfterValidator(_absolute)]
InputPath = Annotated[AnyPath, AfterValidator(_existing)]


def _sampler(name: str) -> str:
    found = find_sampler(name)
    if found is None:
        raise ValueError(f'there is no scheduler "{name}"; {did_you_mean(name.lower(), SAMPLERS)}')
    return found


SamplerName = Annotated[str, AfterValidator(_sampler)]


class Section(BaseModel):
    """Unknown keys are errors, wrong types are errors, and nothing changes after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def refusal(problems: Mapping[str, str]) -> ValidationError:
    """What a validator of the whole job raises to have each problem told of the line of its dotted key."""
    details = (
        InitErrorDetails(type="value_error", loc=(*key.split("."),), input=None, ctx={"error": ValueError(problem)})
        for key, problem in problems.items()
    )
    return ValidationError.from_exception_data("job", list(details))


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, in the words of who found it."""
    return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")


class OutputSection(Section):
    path: AnyPath | None = Field(None, description="where the result goes; by default out/<name> in the current folder")
    overwrite: bool = Field(False, description="replace files that are already there")
    metadata: Literal["full", "minimal"] = Field(
        "full", description="adapters and pictures tell how they were made, or loractl's version alone"
    )


class AdapterOutputSection(OutputSection):
    format: tuple[Literal["diffusers", "kohya"], ...] = Field(
        ("diffusers", "kohya"), min_length=1, description="the adapter is written in each of these forms"
    )
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="precision of the saved factors")


class FileOutputSection(OutputSection):
    format: Literal["diffusers", "kohya"] = Field("diffusers", description="the form of the file")
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="precision of the saved factors")


class ChildOutputSection(OutputSection):
    """Of an adapter made out of others, which are its parents."""

    format: Literal["diffusers", "kohya", "cloneofsimo"] | None = Field(
        None, description="the form of the file; by default that of the first parent"
    )
    dtype: Literal["fp16", "bf16", "fp32"] | None = Field(
        None, description="precision of the saved factors; by default the widest of any parent"
    )


class Spec(Section):
    """The root of every job."""

    method: str = Field(description="which method runs the job")
    name: Name = Field("adapter", description="names the output's folder and files")
    seed: int = Field(42, ge=0, lt=2**63, description="all randomness comes from this number")
    output: OutputSection = Field(OutputSection(), description="where the result goes")

    writes_file: ClassVar[bool] = False  # a method whose result is one file says True
    writes_nothing: ClassVar[bool] = False  # one that only tells what it finds says True
    resumes: ClassVar[bool] = False  # one that goes on where an interrupted run of it stopped says True

    def destination(self) -> Path:
        """Where this job writes: a folder, or the one file."""
        return self.output.path or Path("out", f"{self.name}.safetensors" if self.writes_file else self.name)

    def record(self) -> Path:
        """Where the resolved job is kept: job.toml in the folder, or NAME.job.toml beside the file."""
        where = self.destination()
        return where.with_suffix(".job.toml") if self.writes_file else where / "job.toml"

    def result(self) -> Path:
        """The file whose presence says that this job has been carried out."""
        return self.destination() if self.writes_file else self.record()

    def is_done(self) -> bool:
        """Whether there is a result that another run would replace."""
        return not self.writes_nothing and self.result().exists()

    def shortfalls(self) -> list[str]:
        """What the result that is there lacks of what the job asks for: each a sentence, and exit code 8."""
        return []

    def require_shareable(self, processes: int) -> None:
        """ValueError when so many processes can't carry the job out together."""
        if processes > 1:
            raise ValueError(
                f"{self.method} is the work of one process, not of {processes}: leave memory.processes out, and start "
                "it without accelerate launch or torchrun"
            )

    def resolved(self) -> Self:
        """The job with its destination spelt out, so that it can be carried out from anywhere."""
        output = self.output.model_copy(update={"path": self.destination().absolute()})
        return self.model_copy(update={"output": output})

    def provenance(self) -> dict[str, str]:
        """Metadata for the files this job makes: the job itself, less where it wrote, its paths without folders. Who
        publishes a file may want it to tell less.
        """
        version = {"loractl.version": loractl.__version__}
        if self.output.metadata == "minimal":
            return version
        job = json.dumps(_without_folders(self.model_dump(exclude={"output"}, exclude_none=True)), sort_keys=True)
        return {**version, "loractl.job": job}


class SizedSpec(Spec):
    """A job whose result may be truncated; everything that is said of its size holds at once."""

    rank: Positive | None = Field(None, description="each module's rank at most")
    energy: Share | None = Field(None, description="the least rank that keeps this share of each module's squared norm")
    ratio: Share | None = Field(None, description="singular values below this share of their module's largest go")
    budget_mb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="megabytes (10⁶) for all factors, spent where they keep most"
    )

    @property
    def is_sized(self) -> bool:
        return any(size is not None for size in (self.rank, self.energy, self.ratio, self.budget_mb))


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    is_path = isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())
    return Path(value).name if is_path else value


class ModelSection(Section):
    source: str = Field(description='"lab" (built in), a diffusers folder, a checkpoint in one file, or a hub id')
    revision: str | None = Field(None, description="the hub revision, for results that can be repeated")
    config: str | None = Field(
        None, description="for one file: a diffusers folder or hub id of its kind, for tokenizers and what it lacks"
    )
    allow_pickle: bool = Field(False, description="read a .ckpt as well: its tensors alone, never code")

    @property
    def loading(self) -> dict[str, Any]:
        """What `families.pipeline.load_model` is told beside the source."""
        return {"revision": self.revision, "config": self.config, "allow_pickle": self.allow_pickle}

    @field_validator("source")
    @classmethod
    def _resolve(cls, source: str, info: ValidationInfo) -> str:
        """A path that exists becomes absolute; one that can only be a path must exist."""
        path = _absolute(Path(source), info)
        if path.is_file() and path.suffix in (".safetensors", ".ckpt"):
            return str(path)
        if source != "lab" and path.is_dir():
            if not (path / "model_index.json").is_file():
                raise ValueError(f"{path} is not a diffusers folder: it has no model_index.json")
            return str(path)
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ValueError(f"there is no folder {path}")
        return source


def _as_model(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


Model = Annotated[ModelSection, BeforeValidator(_as_model, json_schema_input_type=str | ModelSection)]


class DeviceSection(Section):
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the arithmetic is done; files need no GPU")


class MemorySection(Section):
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA when there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the model and its arithmetic; auto: bf16 on a GPU that has it, else fp32"
    )


class AdapterUse(Section):
    path: InputPath = Field(description="the file of an adapter, of a learned token, or of both")
    weight: Finite = Field(1.0, description="what its ΔW is multiplied by; may be negative; learned tokens have none")


def stems(files: Iterable[Path]) -> tuple[str, ...]:
    """The files' names without endings, numbered from the second of a name on: face, face-2."""
    seen, named = Counter[str](), []
    for stem in (file.stem for file in files):
        seen[stem] += 1
        named.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return tuple(named)


Sides = Annotated[int | str, AfterValidator(sides)]
SIDES = 'pixels of each side, or "768x512": of width and height; by default the model\'s own'


class SampleSection(Section):
    prompts: tuple[str, ...] = Field((), description="what the pictures before and after show; by default the subject")
    negative: str = Field("", description="negative prompt")
    seeds: Seeds = Field((0, 1, 2, 3), min_length=1, description='one picture each; "5..8" stands for 5, 6, 7, 8')
    steps: Positive = Field(25, description="denoising steps")
    guidance: float | None = Field(None, ge=0, description="classifier-free guidance scale; by default the model's own")
    size: Sides | None = Field(None, description=SIDES)
    at_start: bool = Field(True, description="sample before training too, for the comparison")


class PromptedSampleSection(SampleSection):
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="one row of pictures for each")
    seeds: Seeds = Field((0,), min_length=1, description='one picture each; "5..8" stands for 5, 6, 7, 8')


def default_job_name(path: Path) -> str:
    """A job that names nothing is named after its file."""
    safe = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in path.stem)
    return safe.lstrip("._-")[:100] or "adapter"
