"""What one training method wants of the run that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass

from loractl.sections import AdapterSection, EmbeddingSection, PriorSection, TrainingSpec

Active = Callable[[int], frozenset[str]]


@dataclass(frozen=True)
class Recipe:
    """What learns (`adapter`, `embedding` or both), in which steps, from which words.

    `prompt` names the subject in samples and scores, and is the caption of pictures that have no other; with
    `templates` ("a photo of a {}") the caption is one of them, drawn anew at every step. `active` tells which of
    "denoiser", "text_encoder" and "tokens" learn in a step. `token_weight` scales the tokens' gradients,
    `subject_weight` the subject's loss beside the prior's.
    """

    prompt: str
    active: Active
    adapter: AdapterSection | None = None
    embedding: EmbeddingSection | None = None
    class_prompt: str | None = None
    prior: PriorSection | None = None
    templates: tuple[str, ...] = ()
    template_word: str = ""
    token_weight: float = 1.0
    subject_weight: float = 1.0

    @property
    def words(self) -> frozenset[str]:
        """What learns of "text_encoder" and "tokens", in whichever steps; `active` may name what isn't there."""
        reads = self.adapter is not None and self.adapter.text_encoder
        return frozenset(name for name, there in (("tokens", self.embedding), ("text_encoder", reads)) if there)

    @property
    def learns_words(self) -> bool:
        """Whether what the text encoders say changes: in them, or in their tokens, something learns."""
        return bool(self.words)


Cook = Callable[[TrainingSpec], Recipe]
