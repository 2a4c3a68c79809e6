"""The loss of a training step: the subject's pictures, what keeps its class, and the pull on learned tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from loractl.families.conditioning import Conditioning
from loractl.families.family import Family
from loractl.runs.learner import Learner
from loractl.runs.recipe import Recipe
from loractl.sections import TrainingSpec
from loractl.train.batches import Batch, Share, Source
from loractl.train.conditioning import Conditioner
from loractl.train.loss import Weighting, denoising_errors, predicted_prior_errors, prediction, with_prior
from loractl.train.streams import stream
from loractl.train.team import Team
from loractl.train.templates import fill


@dataclass
class Objective:
    """Callable as `fit` wants it: (step, accumulated batch) → scalar."""

    spec: TrainingSpec
    recipe: Recipe
    model: Family
    learner: Learner
    sources: Sequence[Source]  # the subject's and, with class pictures, the class's
    conditioner: Conditioner
    team: Team = field(default=Team())

    def __post_init__(self) -> None:
        train, loss = self.spec.train, self.spec.loss
        self.share = Share(train.batch_size, train.grad_accum, self.team.index, self.team.size)
        self.weighting = Weighting(loss.kind, loss.huber_c, train.snr_gamma, loss.debiased, loss.huber_schedule)
        prior = self.recipe.prior
        self.prior_weight = prior.weight if prior else 0.0
        self.learns_words = self.recipe.learns_words
        self.conditioner.expect(sentences(self.recipe, self.sources))
        self.predicts_prior = prior is not None and prior.source == "prediction"

    def settle(self) -> None:
        """Brings to the device what training needs, after the captions were encoded if nothing of them learns."""
        if not self.learns_words:
            self.conditioner.prepare(sentences(self.recipe, self.sources))
        self.model.bring(*needed(self.model, self.recipe, self.sources))

    def __call__(self, step: int, part: int) -> Tensor:
        batches = self.batches(step, part)
        active = self.recipe.active(step)
        learns = bool(active & self.recipe.words)
        self.learner.start_step(step)
        with self.model.autocast():
            if self.predicts_prior:
                loss = self._with_predicted_prior(batches[0], learns)
            else:
                errors = torch.cat([self._errors(batch, learns) for batch in together(batches)])
                weight = self.recipe.subject_weight
                loss = weight * with_prior(errors, len(batches[0]), self.prior_weight / weight)
        return loss + self.learner.pull() if "tokens" in active else loss

    def _untouched(self, captions: list[str]) -> Conditioning:
        """Their conditioning without adapters: the learner's text encoder has none, or they are switched off here."""
        return self.model.told(captions) if self.learns_words else self.conditioner(captions, learns=False)

    def _errors(self, batch: Batch, learns: bool) -> Tensor:
        return denoising_errors(self.model, batch, self.conditioner(batch.captions, learns), self.weighting)

    def batches(self, step: int, part: int) -> list[Batch]:
        """The subject's and the class's."""
        return self._drawn(step, self.share.samples(part))

    def _drawn(self, step: int, samples: range) -> list[Batch]:
        batches = [source.batch(step, samples, self.share.per_step) for source in self.sources]
        if self.recipe.templates:
            captions = [self._sentence(step, sample) for sample in samples]
            batches[0] = replace(batches[0], captions=captions)
        return batches

    def where(self, step: int) -> str:
        """The pictures and times of a step, for a report of what went wrong in it; of all processes' shares."""
        batches = self._drawn(step, range(self.share.per_step))
        pairs = (
            (name, time) for batch in batches for name, time in zip(batch.names, batch.times.tolist(), strict=True)
        )
        return ", ".join(f"{name} at time {time:.3f}" for name, time in pairs)

    def _sentence(self, step: int, sample: int) -> str:
        templates = self.recipe.templates
        generator = stream(self.spec.seed, "subject", "template", step, sample)
        chosen = int(torch.randint(len(templates), (1,), generator=generator))
        return fill(templates[chosen], self.recipe.template_word)

    def _with_predicted_prior(self, batch: Batch, learns: bool) -> Tensor:
        """What the model says of the class prompt at the same noisy pictures shall stay what it said untouched."""
        prompt = [self.recipe.class_prompt or ""] * len(batch)
        with torch.no_grad(), self.learner.switched_off():
            untouched = prediction(self.model, batch, self._untouched(prompt))
        errors = self._errors(batch, learns)
        kept = predicted_prior_errors(self.model, batch, self.conditioner(prompt, learns), untouched, self.weighting)
        return self.recipe.subject_weight * errors.mean() + self.prior_weight * kept.mean()


def make_room(model: Family, recipe: Recipe, sources: Sequence[Source]) -> Conditioner:
    """Reads all captions, unless what they say will change, so that the text encoders may go; then brings what training
    needs, and keeps it in memory.
    """
    conditioner = Conditioner(model)
    if not recipe.learns_words:
        model.bring(*model.text_encoder_names)
        conditioner.prepare(sentences(recipe, sources))
    model.bring(*needed(model, recipe, sources))
    model.keep()
    return conditioner


def needed(model: Family, recipe: Recipe, sources: Sequence[Source]) -> list[str]:
    """The networks of a step: text encoders too, where they learn or new captions come up all the time."""
    reads = recipe.learns_words or any(source.shuffle_tags or source.tag_dropout for source in sources)
    return [model.denoiser_name, *(model.text_encoder_names if reads else ())]


def sentences(recipe: Recipe, sources: Sequence[Source]) -> list[str]:
    """Every caption that is known beforehand; those with shuffled tags are not."""
    captions = [example.caption for source in sources for example in source.latents.examples]
    return ["", *captions, *([recipe.class_prompt] if recipe.class_prompt else [])]


def together(batches: Sequence[Batch]) -> list[Batch]:
    """One batch for one forward pass, where all pictures have one size; beside buckets, class pictures have another."""
    if len({batch.latents.shape[1:] for batch in batches}) > 1:
        return list(batches)
    return [sum(batches[1:], batches[0])]
