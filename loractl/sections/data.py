"""The pictures of a job that trains: where they are, how they are captioned, cut and varied."""

from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loractl.specs import InputPath, Positive, Section

Chance = Annotated[float, Field(ge=0, le=1)]
BUCKET_STEP = 64  # pixels, as data.buckets has it
INHERITED = ("captions", "template", "repeats", "masks")
"""What [data] says for all of its sources."""

Captions = Literal["auto", "prompt", "sidecar", "filename", "template", "jsonl"]


class SourceSection(Section):
    """One set of pictures."""

    path: InputPath | None = Field(
        None,
        description="a folder, one picture, a metadata.jsonl, a folder of kohya's `10_token class` folders, or a kohya "
        "dataset .toml",
    )
    glob: str | None = Field(None, description='instead of path: a pattern such as "photos/*.jpg"')
    captions: Captions = Field(
        "auto",
        description="each picture's caption: subject.prompt, its own .txt file, its file name, template, the text in "
        "metadata.jsonl; auto takes the text or the .txt file if there is one, else the prompt",
    )
    template: str | None = Field(
        None, description='for captions = "template": a sentence with {name} or {prompt} in it'
    )
    repeats: Positive = Field(1, description="how often each picture is shown in an epoch")
    masks: InputPath | None = Field(None, description="a folder of masks, named as the pictures; white learns")

    @field_validator("template")
    @classmethod
    def _has_known_fields(cls, template: str | None) -> str | None:
        """As data.captions reads it."""
        try:
            fields = {tuple(field) for _, *field in Formatter().parse(template or "") if field[0] is not None}
        except ValueError as error:
            raise ValueError(f"the template is broken ({error})") from None
        if template and (not fields or not fields <= {("name", "", None), ("prompt", "", None)}):
            raise ValueError("the template needs {name} or {prompt}, and no other {field}")
        return template


class DataSection(SourceSection):
    sources: tuple[SourceSection, ...] = Field(
        (),
        description="several sets of pictures, instead of path; what [data] says of captions, template, repeats and "
        "masks holds for those that don't say it themselves",
    )
    resolution: Positive | None = Field(None, description="pixels of the shorter side; by default the model's own")
    buckets: bool = Field(
        False, description="keep each picture's shape: batches of one aspect ratio, in steps of 64 pixels"
    )
    upscale: bool = Field(False, description="let buckets enlarge pictures that are smaller than the resolution")
    crop: Literal["center", "random"] = Field(
        "center", description="what is cut from a picture that is too wide or high"
    )
    flip: bool = Field(False, description="mirror half of the pictures, drawn anew at every step")
    jitter: Chance = Field(0.0, description="change brightness, contrast and saturation by up to this share")
    caption_dropout: Chance = Field(0.0, description="share of steps that see an empty caption")
    shuffle_tags: bool = Field(False, description="shuffle the parts of a caption between commas at every step")
    keep_tags: int = Field(0, ge=0, description="this many parts stay in front")
    tag_dropout: Chance = Field(0.0, description="share of the other parts that are left out")
    alpha_masks: bool = Field(False, description="where a picture is transparent nothing is learnt")
    mask_floor: Chance = Field(0.0, description="the loss's weight where a mask is black")
    on_bad_image: Literal["error", "skip"] = Field("error", description="what to do with a file that can't be read")

    @field_validator("sources")
    @classmethod
    def _fill(cls, sources: tuple[SourceSection, ...], info: ValidationInfo) -> tuple[SourceSection, ...]:
        """Each set with what [data] says and it does not. What [data] itself is silent of is left open, since a fleet's
        subject is filled once more.
        """
        defaults = {key: SourceSection.model_fields[key].default for key in INHERITED}
        said = {key: info.data[key] for key in INHERITED if info.data.get(key, defaults[key]) != defaults[key]}
        return tuple(
            source.model_copy(update={key: said[key] for key in said.keys() - source.model_fields_set})
            for source in sources
        )

    @field_validator("buckets")
    @classmethod
    def _fit_the_resolution(cls, buckets: bool, info: ValidationInfo) -> bool:
        resolution = info.data.get("resolution")
        if buckets and resolution is not None and resolution < BUCKET_STEP:
            raise ValueError(f"buckets are multiples of {BUCKET_STEP} pixels, and resolution = {resolution} is less")
        return buckets

    @model_validator(mode="after")
    def _have_templates(self) -> "DataSection":
        if any(source.captions == "template" and not source.template for source in self.sets):
            raise ValueError('captions = "template" needs a template')
        return self

    @model_validator(mode="after")
    def _has_pictures(self) -> "DataSection":
        for source in self.sources or (self,):
            if (source.path is None) == (source.glob is None):
                raise ValueError("name the pictures once: path, glob or sources")
        if self.sources and (self.path or self.glob):
            raise ValueError("name the pictures once: path, glob or sources")
        return self

    @property
    def sets(self) -> tuple[SourceSection, ...]:
        return self.sources or (self,)
