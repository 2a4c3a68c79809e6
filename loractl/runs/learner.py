"""All that learns in a job together, and the files it becomes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from loractl.device import PRECISIONS
from loractl.errors import InputError, MismatchError
from loractl.families.family import Family
from loractl.formats import save_adapter
from loractl.runs.parts import FullPart, LoraPart, Part, TokenPart
from loractl.runs.recipe import Recipe
from loractl.runs.sizes import count
from loractl.sections import TrainingSpec
from loractl.tensors.adapter import Adapter
from loractl.train.checkpoint import checkpoints
from loractl.train.loop import Group, Plan, Training
from loractl.train.metrics import NAME as METRICS
from loractl.train.optim import make_optimizer

Form = Literal["diffusers", "kohya"]
DENOISERS, TEXT_ENCODERS = ("unet", "transformer"), ("text_encoder", "text_encoder_2")  # which, the model will tell
CLAIM = ".run"  # the file that says which method's run has a folder
ADAPTERS = "adapters"  # the folder of those that are kept on the way


class Learner:
    """The parts together."""

    def __init__(self, model: Family, spec: TrainingSpec, recipe: Recipe) -> None:
        self.model, self.spec, self.recipe = model, spec, recipe
        adapter = recipe.adapter
        # tokens first: what adapters wrap of the text encoder does not include its embedding
        self.tokens = TokenPart(model, spec, recipe.embedding, recipe.token_weight) if recipe.embedding else None
        self.lora = LoraPart(model, spec, adapter) if adapter and adapter.kind == "lora" else None
        self.full = FullPart(model, spec, adapter) if adapter and adapter.kind == "full" else None
        self.forms = forms(model, spec) if self.lora else []
        if spec.memory.gradient_checkpointing:
            model.enable_gradient_checkpointing()

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.tokens, self.lora, self.full) if part is not None]

    def groups(self) -> list[Group]:
        return [group for part in self.parts for group in part.groups()]

    def training(self, parts: int) -> Training:
        """The loop's state before the first step, of which each accumulates `parts` batches here."""
        train, optimizer, schedule, groups = self.spec.train, self.spec.optimizer, self.spec.schedule, self.groups()

        def active(step: int) -> frozenset[str]:
            """The groups that learn in a step are those whose first word the recipe names."""
            names = self.recipe.active(step)
            return frozenset(group.name for group in groups if group.name.partition(":")[0] in names)

        plan = Plan(train.steps, parts, train.max_grad_norm, schedule.name, schedule.warmup_steps, active, train.ema)
        made = make_optimizer(
            groups,
            optimizer.name,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            eps=optimizer.eps,
            options=optimizer.options,
        )
        return Training(groups, made, plan)

    def facts(self) -> dict[str, Any]:
        found = {name: value for part in self.parts for name, value in part.facts().items()}
        if self.lora and set(self.forms) < set(self.spec.output.format):
            found["not written"] = f"kohya's form, which has no names for {self.model.title}"
        return found

    def count(self) -> int:
        return count(self.groups())

    def start_step(self, step: int) -> None:
        if self.lora:
            self.lora.start_step(step, self.recipe.active(step))

    def end_step(self) -> None:
        for part in (self.lora, self.tokens):
            if part:
                part.end_step()

    def learnt_nothing(self) -> bool:
        """Whether adapters and tokens are as they were before training."""
        parts = [part for part in (self.lora, self.tokens) if part]
        return bool(parts) and all(part.learnt_nothing() for part in parts)

    def pull(self) -> Tensor | float:
        return self.tokens.pull() if self.tokens else 0.0

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The model without its adapters; only these can be switched off."""
        if self.lora is None:
            raise ValueError("only low-rank adapters can be switched off")
        with self.lora.switched_off():
            yield

    def save(self, folder: Path, overwrite: bool) -> dict[str, Path]:
        """Adapters in each form, kohya's a bundle with the tokens; each token alone; whole networks as folders."""
        files = self.full.save(folder, overwrite) if self.full else {}
        tokens = self.tokens.collect() if self.tokens else {}
        metadata, name = {**self.spec.provenance(), **self.origin}, self.spec.name
        settings: dict[str, Any] = {"dtype": PRECISIONS[self.spec.output.dtype], "overwrite": overwrite}
        for form in self.forms:
            path = files[form] = folder / adapter_files(name)[form]
            save_adapter(path, self.adapter(form), form, name=name, **settings)
        for token, rows in by_token(tokens).items():
            alone = Adapter({}, metadata, rows)
            for kind, file in token_files(token).items():
                if kind == "learned_embeds" and len(rows) > 1:
                    continue  # it has no place for a second text encoder
                path = files[f"{token} ({kind})"] = folder / file
                path.parent.mkdir(exist_ok=True)
                save_adapter(path, alone, kind, name=token, **settings)
        return files

    def keep(self, folder: Path, step: int) -> Path:
        """Leaves the adapter of a step in one file, which no later checkpoint removes; kohya's form where it has names
        for the model, because of the tokens.
        """
        form: Form = "kohya" if self.model.has_kohya_names else "diffusers"
        path = folder / ADAPTERS / f"step-{step:06d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        dtype = PRECISIONS[self.spec.output.dtype]
        save_adapter(path, self.adapter(form), form, dtype=dtype, name=f"{self.spec.name} {step}", overwrite=True)
        return path

    def adapter(self, form: Form) -> Adapter:
        """What the file of a form holds: kohya's is a bundle with the tokens."""
        modules = self.lora.modules() if self.lora else {}
        tokens = self.tokens.collect() if self.tokens and form == "kohya" else {}
        return Adapter(modules, {**self.spec.provenance(), **self.origin}, tokens)

    @property
    def origin(self) -> dict[str, str]:
        """What a file says of the base model where the adapter's own widths don't tell it."""
        return {"ss_base_model_version": self.model.version} if self.model.version else {}


def forms(model: Family, spec: TrainingSpec) -> list[Form]:
    """The forms of the adapter's file, as far as they have names for the family. MismatchError when none has."""
    found: list[Form] = [form for form in spec.output.format if form == "diffusers" or model.has_kohya_names]
    if not found:
        raise MismatchError(f'kohya\'s format has no names for {model.title}: set output.format = ["diffusers"]')
    return found


def by_token(tokens: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Token → its rows by component and token, from all rows so named."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, rows in tokens.items():
        found.setdefault(key.partition(".")[2], {})[key] = rows
    return found


def may_overwrite(spec: TrainingSpec, recipe: Recipe) -> bool:
    """Whether the files in the folder are those of a run of this method, interrupted, or the job allows it.

    Otherwise InputError when the run would replace one, now and not when training is over.
    """
    folder = spec.destination()
    if spec.output.overwrite or claimed_by(folder) == spec.method or checkpoints(spec.checkpoints()):
        return True
    there = [name for name in (*result_files(spec, recipe), METRICS) if (folder / name).exists()]
    if there:
        raise InputError(f"{folder / there[0]} is already there: choose another --out, or replace it with --overwrite")
    return False


def claim(folder: Path, method: str) -> None:
    """Leaves word that what is written in a folder from here on is a run's of this method."""
    (folder / CLAIM).write_text(method, encoding="utf-8")


def claimed_by(folder: Path) -> str | None:
    try:
        return (folder / CLAIM).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def result_files(spec: TrainingSpec, recipe: Recipe) -> list[str]:
    """Names of the adapter and token files that a job makes in its folder, and of the networks' folders it may make."""
    adapter, embedding = recipe.adapter, recipe.embedding
    forms = spec.output.format if adapter and adapter.kind == "lora" else ()
    tokens = embedding.tokens if embedding else ()
    networks = [*DENOISERS, *(TEXT_ENCODERS if adapter.text_encoder else ())] if adapter and not forms else []
    alone = [file for token in tokens for file in token_files(token).values()]
    return [*(adapter_files(spec.name)[form] for form in forms), *networks, *alone]


def adapter_files(name: str) -> Mapping[str, str]:
    """The file of each form: kohya's under the job's name, since user interfaces show it; diffusers' under the name
    it looks for.
    """
    return {"diffusers": "pytorch_lora_weights.safetensors", "kohya": f"{name}.safetensors"}


def token_files(token: str) -> Mapping[Literal["learned_embeds", "a1111"], str]:
    """The file of each form: A1111's under the token's name, which is how prompts call it there."""
    word = "".join(character for character in token if character.isalnum() or character in "._-") or "token"
    return {"learned_embeds": f"{word}.learned_embeds.safetensors", "a1111": f"embeddings/{word}.safetensors"}
