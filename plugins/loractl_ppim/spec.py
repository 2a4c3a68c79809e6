"""What a job that prepares pictures may say."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loractl.errors import InputError
from loractl.specs import InputPath, Positive, Section, Spec, Weight, refusal

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]

STEP = 64  # of buckets
NETWORKS = ("transformers", "rembg")  # sources of masks

# Which sources use a key of the mask and of the caption section.
MASKERS = {"model": NETWORKS, **dict.fromkeys(("revision", "prompt", "threshold"), ("transformers",))}
WRITERS = {
    "template": ("template",),
    **dict.fromkeys(("captioner", "model", "revision", "prompt", "max_tokens"), ("captioner",)),
}


def unused(section: Section, users: Mapping[str, Sequence[str]], sources: Sequence[str], ask: str) -> dict[str, str]:
    """The keys whose users are not among the sources. One that is at its default was not asked for: a resolved job has
    them all.
    """
    problems = {}
    for key, each in users.items():
        if getattr(section, key) != type(section).model_fields[key].default and not {*each} & {*sources}:
            problems[key] = f"nothing uses it: {ask} {' or '.join(map(json.dumps, each))}, or leave it out"
    return problems


class PicturesSection(Section):
    path: InputPath = Field(description="the folder of pictures, read with all that is below it; nothing in it changes")


class ReadSection(Section):
    max_megapixels: float = Field(
        200, gt=0, allow_inf_nan=False, description="pictures of more are not decoded; this bounds a worker's memory"
    )
    background: Color = Field(
        (255, 255, 255), description="red, green and blue, 0 to 255, of what transparent pictures are laid on"
    )


class CheckSection(Section):
    """What is measured is measured of a copy of 512 pixels a side, so that thresholds hold for cameras of all kinds."""

    min_side: int = Field(256, ge=0, description="pixels of the shorter side")
    max_aspect: float = Field(3.0, ge=1, allow_inf_nan=False, description="longer side by shorter side")
    min_blur: Weight = Field(20.0, description="variance of the Laplacian, 0 to 255; blurred pictures have less")
    min_exposure: Share = Field(0.05, description="mean brightness")
    max_exposure: Share = Field(0.95, description="mean brightness")
    min_contrast: Share = Field(0.04, description="standard deviation of the brightness")
    max_border: Share = Field(1.0, description="share of the area that is plain border; see crop.trim")
    duplicates: bool = Field(True, description="find near-duplicates, also resized, mirrored and cropped ones")
    min_variety: Share = Field(0.3, description="how much backgrounds differ; below it there is a warning, 0: none")
    on_fail: Literal["report", "skip", "error"] = Field(
        "report", description="a picture that fails is kept and told of, left out, or stops the job"
    )


class CropSection(Section):
    how: Literal["center", "random", "subject", "none"] = Field(
        "center", description="what is cut out of a picture that is too wide or high"
    )
    size: Positive = Field(512, description="pixels of each side, or with buckets the root of the area")
    buckets: bool = Field(False, description="keep the shape, in steps of 64 pixels")
    count: Positive = Field(1, description='pictures that are cut out of each, for how = "random"')
    upscale: bool = Field(
        False, description="enlarge pictures that are too small; without it they stay as small as they are"
    )
    subject: Literal["saliency", "faces", "mask", "alpha"] = Field("saliency", description="how the subject is found")
    trim: bool = Field(False, description="cut letterbox bars and plain borders away first")
    keep_faces: bool = Field(False, description="no crop cuts a face; needs the extra faces")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.buckets and self.size < STEP:
            raise refusal({"size": f"buckets go in steps of {STEP} pixels: set at least {STEP}, or leave buckets out"})
        return self

    def looks_for(self, what: str) -> bool:
        return self.how == "subject" and self.subject == what


class ResizeSection(Section):
    light: Literal["gamma", "linear"] = Field(
        "gamma", description="average pixels as they are stored, or as the amounts of light that they stand for"
    )


class AugmentSection(Section):
    """Copies that are written beside each picture; [data] of a training job varies pictures without any."""

    copies: int = Field(
        0, ge=0, description="changed copies that are written of each picture, no two alike: flip alone makes one"
    )
    flip: bool = Field(True, description="mirror about half of the copies")
    rotate: float = Field(0.0, ge=0, le=45, description="turn them by up to this many degrees")
    jitter: Share = Field(0.0, description="change brightness, contrast and saturation by up to this share")

    @model_validator(mode="after")
    def _can_change(self) -> Self:
        if self.copies and not (self.flip or self.rotate or self.jitter):
            raise refusal({"copies": "nothing would change them: set flip, rotate or jitter too, or leave copies out"})
        return self

    @property
    def possible(self) -> int:
        """How many of the copies can differ."""
        return self.copies if self.rotate or self.jitter else min(self.copies, 1)


class MaskSection(Section):
    source: Literal["given", "alpha", "saliency", "transformers", "rembg"] = Field(
        "given",
        description="where masks come from, in which white is learnt; given: from folder, or the original layout's own",
    )
    folder: InputPath | None = Field(None, description="masks named as the pictures, whatever the ending")
    model: str | None = Field(
        None, description="for transformers: a segmentation model's hub id or folder; for rembg: its name"
    )
    revision: str | None = Field(None, description="the hub revision, for results that can be repeated")
    prompt: str | None = Field(None, description="what a model such as CLIPSeg shall find, for example a dog")
    threshold: Share = Field(0.5, description="for transformers: how likely the subject must be")
    soften: float = Field(0.0, ge=0, allow_inf_nan=False, description="blur the edges by this many pixels")
    invert: bool = Field(False, description="exchange black and white")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.source == "transformers" and self.model is None:
            raise ValueError('source = "transformers" needs a model')
        if problems := unused(self, MASKERS, (self.source,), "set mask.source to"):
            raise refusal(problems)
        return self


class CaptionSection(Section):
    sources: tuple[Literal["sidecar", "captioner", "template", "filename"], ...] = Field(
        ("sidecar", "filename"),
        description="the first of these that has a text: the .txt or .caption file, a captioner, template, file name",
    )
    template: str = Field("a photo of {trigger} {class}", description="with {trigger}, {class} and {name} filled in")
    captioner: str = Field("transformers", description="who describes pictures; plugins may offer more")
    model: str | None = Field(None, description="the captioner's model, a hub id or a folder")
    revision: str | None = Field(None, description="the hub revision, for results that can be repeated")
    prompt: str | None = Field(None, description="what the captioner is asked, if its model is asked anything")
    max_tokens: Positive = Field(64, description="length of a captioner's text")
    trigger: str = Field("", description="the word that calls the subject; it is put into every caption")
    class_word: str = Field("", description="what the subject is, for example dog")
    where: Literal["front", "class"] = Field(
        "front", description="the trigger comes first, or in the place of the class word"
    )
    drop: tuple[str, ...] = Field((), description="tags, between commas, that are left out")
    replace: dict[str, str] = Field({}, description="tags, and what takes their place")
    prefix: str = Field("", description="comes before every caption")
    suffix: str = Field("", description="comes after every caption")
    longest: Positive | None = Field(None, description="characters of a caption at most")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.where == "class" and not self.class_word:
            raise ValueError('where = "class" needs a class_word')
        if problems := {**unused(self, WRITERS, self.sources, "add to caption.sources"), **self._incomplete()}:
            raise refusal(problems)
        return self

    def _incomplete(self) -> dict[str, str]:
        problems: dict[str, str] = {}
        if "captioner" in self.sources and self.captioner == "transformers" and self.model is None:
            problems["sources"] = 'the captioner "transformers" needs caption.model: set it to a hub id or a folder'
        if "template" in self.sources and (problem := template_problem(self.template)):
            problems["template"] = problem
        return problems


def template_problem(template: str) -> str | None:
    """What the captions' own rules have against it."""
    from loractl.prepare.caption_rules import fill_template

    try:
        fill_template(template)
    except InputError as error:
        return str(error)
    return None


class WriteSection(Section):
    layout: Literal["imagefolder", "kohya", "original"] = Field(
        "imagefolder",
        description="images/NAME.png; kohya's folder REPEATS_trigger class; or 0.src.jpg, 0.mask.png and caption.txt "
        "as cloneofsimo/lora has them; each comes with a metadata.jsonl, which data.path reads",
    )
    format: Literal["png", "jpeg"] | None = Field(None, description="png by default, jpeg in the original layout")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="of JPEG files")
    sidecars: bool = Field(False, description="write a .txt file beside each picture too; kohya's layout always does")
    repeats: Positive = Field(10, description="in the name of kohya's folder")
    page: bool = Field(True, description="write page.html, which shows what became of every file")
    sheet: bool = Field(True, description="write sheet.png, all pictures in small")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.layout == "original" and self.format == "png":
            raise ValueError('layout = "original" has .src.jpg files: leave format out')
        return self

    @property
    def encoding(self) -> Literal["png", "jpeg"]:
        return self.format or ("jpeg" if self.layout == "original" else "png")


class RunSection(Section):
    workers: int | None = Field(
        None, ge=0, description="processes that decode; by default one a core; 0: none, all in the program's own"
    )
    memory_mb: Positive | None = Field(
        None, description="of each worker process; a picture that takes more fails alone; not with Ray"
    )
    executor: Literal["processes", "ray"] = Field("processes", description="on this machine, or on a cluster of Ray")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="for models that mask and caption")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="of these models")
    batch_size: Positive = Field(8, description="pictures that such a model sees at once; halved where memory is short")
    dry_run: bool = Field(False, description="say what would become of every file, and write nothing")

    @model_validator(mode="after")
    def _bounds_a_worker(self) -> Self:
        if self.memory_mb is None or (self.executor == "processes" and self.workers != 0):
            return self
        whose = 'Ray\'s workers are not held to it: leave it out, or set run.executor = "processes"'
        nobody = "without workers there is nothing to hold to it: leave it out, or set run.workers to 1 or more"
        raise refusal({"memory_mb": whose if self.executor == "ray" else nobody})


class PpimSpec(Spec):
    method: Literal["ppim"] = Field("ppim", description="which method runs the job")
    source: PicturesSection = Field(description="the pictures")
    read: ReadSection = Field(ReadSection(), description="how files are read")
    check: CheckSection = Field(CheckSection(), description="what is good enough")
    crop: CropSection = Field(CropSection(), description="what of a picture is taken, and at which size")
    resize: ResizeSection = Field(ResizeSection(), description="how it is brought to that size (Lanczos)")
    augment: AugmentSection = Field(AugmentSection(), description="changed copies")
    mask: MaskSection = Field(MaskSection(), description="which pixels count")
    caption: CaptionSection = Field(CaptionSection(), description="what is said of a picture")
    write: WriteSection = Field(WriteSection(), description="which files are made")
    run: RunSection = Field(RunSection(), description="how the work is done")

    @model_validator(mode="after")
    def _stays_apart(self) -> Self:
        source, out = self.source.path.resolve(), self.destination().resolve()
        if source.is_relative_to(out) or out.is_relative_to(source):
            raise ValueError(f"the output {out} and the source {source} lie in one another: choose another output.path")
        return self

    @model_validator(mode="after")
    def _masks_are_there(self) -> Self:
        """A network masks what was cut out, so it can't say what to cut."""
        source, folder = self.mask.source, self.mask.folder
        is_looked_for = self.crop.looks_for("mask")
        if is_looked_for and source in NETWORKS and folder is None:
            problem = f"masks by {source} are made after the crop: set mask.folder too, or another crop.subject"
            raise refusal({"crop.subject": problem})
        if folder is not None and source != "given" and not (is_looked_for and source in NETWORKS):
            problem = f'nothing uses it with mask.source = "{source}": leave one of both out'
            raise refusal({"mask.folder": problem})
        return self

    @property
    def writes_nothing(self) -> bool:  # type: ignore[override]  # it depends on the job here
        return self.run.dry_run

    def is_done(self) -> bool:
        """Never: another run does what has changed."""
        return False
