"""A method without torch, for the tests of the front: it writes its own numbers to a file."""

from pathlib import Path
from typing import Annotated, Literal

import pluggy
import typer
from pydantic import Field, model_validator

from loractl import hookspecs
from loractl.events import Emit, Facts, Note, Progress, Wrote
from loractl.job import spec_from_options
from loractl.method import Method, Outcome
from loractl.plugins import Plugins
from loractl.sections import AdapterSection, DataSection, OptimizerSection, SubjectSection, TrainSection
from loractl.specs import InputPath, Model, SampleSection, Section, Spec


class Part(Section):
    path: InputPath = Field(description="a file")
    weight: float = Field(1.0, description="its weight")


class ToySpec(Spec):
    method: Literal["toy"] = Field("toy", description="which method runs the job")
    model: Model = Field(description="the base model")
    data: DataSection | None = Field(None, description="pictures")
    subject: SubjectSection = Field(description="what is shown")
    adapter: AdapterSection = Field(AdapterSection(), description="what learns")
    train: TrainSection = Field(TrainSection(), description="the loop")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="the optimizer")
    sample: SampleSection = Field(SampleSection(), description="pictures")
    parts: tuple[Part, ...] = Field((), description="files with weights")

    @model_validator(mode="after")
    def _rule(self) -> "ToySpec":
        if self.seed == 13:
            raise ValueError("seed 13 brings bad luck: take another")
        return self


class FileSpec(Spec):
    method: Literal["file"] = Field("file", description="which method runs the job")
    writes_file = True


def run(spec: ToySpec, emit: Emit) -> Outcome:
    print("a library prints to stdout")
    emit(Facts("toy", {"steps": spec.train.steps}))
    for step in range(spec.train.steps):
        emit(Progress("train", step + 1, spec.train.steps, {"loss": 0.5}))
    emit(Note("nothing was learnt", "warning"))
    file = spec.destination() / "toy.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{spec.seed} {spec.train.steps}\n", encoding="utf-8")
    emit(Wrote(file, "toy"))
    return Outcome({"toy": file}, {"loss": 0.5})


def run_file(spec: FileSpec, emit: Emit) -> Outcome:
    emit(Note("writing"))
    spec.destination().write_text("done\n", encoding="utf-8")
    return Outcome({"file": spec.destination()})


def toy(
    prompt: Annotated[str, typer.Argument(help="what is shown")],
    steps: Annotated[int | None, typer.Option(help="optimizer steps")] = None,
    out: Annotated[Path | None, typer.Option(help="the folder")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="replace it")] = None,
) -> ToySpec:
    values = {"subject.prompt": prompt, "model": "lab", "train.steps": steps, "output.path": out}
    return spec_from_options(ToySpec, {**values, "output.overwrite": overwrite}, {"subject.prompt": "PROMPT"})


METHODS = {
    "file": Method("file", "Write one file.", FileSpec, run_file),
    "toy": Method("toy", "Do next to nothing.", ToySpec, run, toy),
}


def plugins() -> Plugins:
    manager = pluggy.PluginManager("loractl")
    manager.add_hookspecs(hookspecs)
    return Plugins(manager, METHODS, dict.fromkeys(METHODS, "toys 1.0"))
