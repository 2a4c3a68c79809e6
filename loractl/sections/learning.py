"""What a job teaches: the subject's names, what keeps its class, and what learns."""

from typing import Literal

from pydantic import Field, model_validator

from loractl.specs import AnyPath, Positive, Rate, SamplerName, Section, Token, Weight


class SubjectSection(Section):
    prompt: str = Field(min_length=1, description='names the subject with a rare token: "a photo of sks dog"')
    class_prompt: str | None = Field(
        None, min_length=1, description="the same sentence without the token; when present, prior preservation is on"
    )


class PriorSection(Section):
    source: Literal["images", "prediction"] = Field(
        "images",
        description="what keeps the class: pictures of it, or what the untouched model predicts for its prompt",
    )
    weight: Weight = Field(1.0, description="the weight of the class's loss beside the subject's")
    images: AnyPath | None = Field(
        None, description="the folder of class pictures; missing ones are added (default: class/ of the output)"
    )
    num_images: Positive = Field(100, description="how many class pictures there shall be")
    steps: Positive = Field(20, description="denoising steps of each")
    scheduler: SamplerName | None = Field(
        None, description="the method of sampling them, by the names that infer knows; by default the model's own"
    )


class TargetSettings(Section):
    rank: Positive | None = Field(None, description="rank of the modules that match")
    alpha: float | None = Field(None, gt=0, description="alpha of the modules that match")
    lr: Rate | None = Field(None, description="learning rate of the modules that match")


class AdapterSection(Section):
    kind: Literal["lora", "full"] = Field("lora", description="low-rank adapters, or the whole denoiser (large)")
    rank: Positive = Field(16, description="columns of each low-rank factor")
    alpha: float | None = Field(None, gt=0, description="ΔW is scaled by alpha / rank; by default alpha = rank")
    targets: tuple[str, ...] | dict[str, TargetSettings] = Field(
        ("attention",),
        description="presets (attention, attention+geglu, extended) or patterns of the denoiser's dotted module paths; "
        "as a table: pattern → rank, alpha and lr",
    )
    text_encoder: bool = Field(False, description="adapt the text encoder's attention as well")
    text_encoder_rank: Positive | None = Field(
        None, description="rank there; by default the denoiser's. alpha / rank is one for both"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's inputs left out at a step")
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="share of its hidden units left out")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapted modules left out")
    max_norm: float | None = Field(None, gt=0, description="no module's ΔW grows beyond this Frobenius norm")


class EmbeddingSection(Section):
    token: Token | tuple[Token, ...] = Field("<subject>", description="the placeholder that learns, or several")
    vectors: Positive = Field(4, description="embedding vectors of each token")
    init: str | tuple[str, ...] = Field(
        "random", description='where each token starts: words ("a striped toy"), "random" or "zero"'
    )
    spread: float | None = Field(
        None, gt=0, description='standard deviation for init = "random"; by default that of the vocabulary'
    )
    lr: Rate = Field(2e-3, description="learning rate of the tokens")
    norm: Literal["free", "preserve", "pull"] = Field(
        "free", description="the vectors' lengths: free, kept as they began, or pulled towards norm_target"
    )
    norm_target: float | None = Field(None, gt=0, description="by default the mean length in the vocabulary")
    norm_weight: Weight = Field(1e-2, description="weight of the pull in the loss")

    @model_validator(mode="after")
    def _tokens_are_apart(self) -> "EmbeddingSection":
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token is named twice")
        pieces = {f"{token}_{i}": token for token in self.tokens for i in range(1, self.vectors + 1)}
        if both := [token for token in self.tokens if token in pieces]:
            raise ValueError(f'"{both[0]}" would be read as a vector of "{pieces[both[0]]}": rename one of the two')
        if not isinstance(self.init, str) and len(self.init) != len(self.tokens):
            raise ValueError("init names one start, or one for each token")
        if self.norm == "preserve" and "zero" in self.starts.values():
            raise ValueError('norm = "preserve" would keep what starts at zero there: choose another init')
        return self

    @property
    def tokens(self) -> tuple[str, ...]:
        return (self.token,) if isinstance(self.token, str) else self.token

    @property
    def starts(self) -> dict[str, str]:
        """Token → its init."""
        inits = (self.init,) * len(self.tokens) if isinstance(self.init, str) else self.init
        return dict(zip(self.tokens, inits, strict=True))
