"""What a family of base models is: a loaded pipeline, and all that training needs to know about it.

A subclass says in what a family differs: which networks there are, how pictures become latents, what the denoiser is
told of a caption and how it is called. Its facts stand at the top of the class; everything else works on all alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from loractl.errors import MismatchError
from loractl.families.conditioning import Conditioning, on_device
from loractl.families.posterior import Posterior
from loractl.families.prediction import DiffusionPath, NoisePath, noise_path
from loractl.families.shelf import Shelf


class Family(ABC):
    """A loaded pipeline of the family. Latents are always (n, c, h, w), and time runs from the clean picture to noise:
    a denoiser that wants it otherwise gets it so in `predict`, and answers there as the others do.
    """

    title: ClassVar[str]
    """What people call it."""
    denoiser_name: ClassVar[str] = "transformer"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}
    """Text encoder → its tokenizer, by the pipeline's names, as far as the pipeline has them. All learn tokens."""
    adaptable: ClassVar[tuple[str, ...]] = ()
    """The text encoders whose adapters diffusers can load."""
    guidance_default: ClassVar[float]
    """How strongly pictures follow the prompt unless a job says otherwise."""
    version: ClassVar[str | None] = None
    """The base model's name in adapter files, `ss_base_model_version`; None where their widths tell it."""
    has_kohya_names: ClassVar[bool] = False
    """Whether kohya's format has names for the denoiser's modules; diffusers' begin with the component's."""
    presets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Presets of adapter targets that mean other layers here than in a UNet."""
    text_length: int | None = None
    """How many tokens a text has at most, where the pipeline wants to be told."""
    loading: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of the pipeline's `from_pretrained`."""

    def __init__(
        self,
        pipeline: Any,
        dtype: torch.dtype,
        guidance: float | None = None,
        guest_of: torch.device | None = None,
        offloaded: bool = False,
        shelf: Shelf | None = None,
    ) -> None:
        """`dtype` is the precision of the arithmetic; parameters that learn may be kept in fp32 all the same.

        The networks stay where they are; or they wait on the shelf, without one in main memory, and visit the device
        `guest_of` when `bring` calls them. An offloaded denoiser sees to itself.
        """
        self.pipeline, self.dtype, self.offloaded = pipeline, dtype, offloaded
        self.guidance = self.guidance_default if guidance is None else guidance
        self.scheduler = pipeline.scheduler
        self._guest_of, self._shelf = guest_of, shelf
        self.texts_on_cpu = False  # where text encoders compute, whatever the device of the others
        self.guests: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()

    # What a family says of itself

    @property
    def resolution(self) -> int:
        """The model's own picture size, in pixels."""
        return int(self.pipeline.default_sample_size) * int(self.pipeline.vae_scale_factor)

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Captions → what the denoiser is told of them. Gradients flow where a text encoder has parameters that train.

        A learned token of several vectors takes up several words, as when the pipeline makes a picture.
        """

    @abstractmethod
    def predict(self, noisy: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        """The denoiser's output for x_t (n, c, h, w) at timesteps t (n,), told what `encode_text` returns."""

    def told_of_sizes(self, conditioning: Conditioning, sizes: Tensor) -> Conditioning:  # noqa: ARG002  most are not
        """The same, and how pictures were cut (n, 6) as `View.sizes` has it, for denoisers that are told of it."""
        return conditioning

    @property
    def shift(self) -> float | Tensor:
        """The latents' mean, which is taken off before they are scaled."""
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    @property
    def scale(self) -> float | Tensor:
        """What latents are multiplied with."""
        return cast(float, self.vae.config.scaling_factor)

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """The autoencoder's own mean and spread of pictures; it may be deterministic, and have no spread."""
        encoded = self.vae.encode(pictures)
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.mean, encoded.latent_dist.std
        return encoded.latents, None  # AutoencoderTiny

    def decoded(self, latents: Tensor) -> Tensor:
        """The autoencoder's pictures (n, 3, height, width) of its own latents, as `moments` gives them."""
        return cast(Tensor, self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0])

    def unpacked(self, latents: Tensor, width: int, height: int) -> Tensor:  # noqa: ARG002  most have them so
        """What the pipeline's loop has of pictures of so many pixels, as (n, c, h, w)."""
        return latents

    def request(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments for the pictures that are asked for in Stable Diffusion's words."""
        return dict(wanted) if self.text_length is None else {**wanted, "max_sequence_length": self.text_length}

    @property
    def multiple(self) -> int:
        """What the sides of pictures are multiples of, in pixels: two latents make a patch."""
        return 2 * int(self.pipeline.vae_scale_factor)

    def reads(self, token: str) -> bool:  # noqa: ARG002  most do
        """Whether a learned token reaches the text encoders as it is written."""
        return True

    @property
    def is_inpainting(self) -> bool:
        """Whether the denoiser sees a mask and the masked picture beside the noise."""
        return False

    # What all have in common

    @property
    def denoiser(self) -> nn.Module:
        return cast(nn.Module, getattr(self.pipeline, self.denoiser_name))

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.pipeline.vae

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """Those that there are; some pipelines do without one."""
        return tuple(name for name in self.encoders if getattr(self.pipeline, name, None) is not None)

    @property
    def components(self) -> dict[str, nn.Module]:
        """What an adapter or a token may change, by the pipeline's names for the networks. Of a CLIP with a projection
        it is the text model inside: adapters name modules of all CLIPs alike.
        """
        networks = {name: network for name, network in self.networks.items() if name != "vae"}
        return {name: getattr(network, "text_model", network) for name, network in networks.items()}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """What splits a text into words, for each text encoder."""
        return {name: getattr(self.pipeline, self.encoders[name]) for name in self.text_encoder_names}

    @property
    def tokenizer(self) -> Any:
        """The first text encoder's."""
        return next(iter(self.tokenizers.values()))

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All that there are, whole."""
        names = (self.denoiser_name, *self.text_encoder_names, "vae")
        return {name: getattr(self.pipeline, name) for name in names}

    @property
    def movable(self) -> dict[str, nn.Module]:
        """The networks that stay where they are put."""
        return {name: each for name, each in self.networks.items() if name != self.denoiser_name or not self.offloaded}

    @property
    def device(self) -> torch.device:
        stays = (each for name, each in self.movable.items() if not (self.texts_on_cpu and name in self.encoders))
        return self._guest_of or next(next(stays).parameters()).device

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders compute."""
        return torch.device("cpu") if self.texts_on_cpu else self.device

    @property
    def has_guests(self) -> bool:
        """Whether the networks take turns on the device."""
        return self._guest_of is not None

    @property
    def loaded(self) -> frozenset[str]:
        """The networks that are in main memory or on the device."""
        return frozenset(name for name in self.networks if self._shelf is None or not self._shelf.has(name))

    def bring(self, *names: str) -> None:
        """Has these networks on the device and no others, if they are guests there; otherwise all of them stay."""
        if self._guest_of is None or self.guests == frozenset(names):
            return
        for name in self.networks.keys() - names:  # those that leave go first
            self._send_away(name)
        for name in names:
            self._fetch(name, self.text_device if name in self.encoders else self._guest_of)
        self.guests = frozenset(names)

    def keep(self) -> None:
        """What is on the device now is not freed any more when it leaves it: it has been changed, or comes often."""
        self._kept = self.guests

    def _send_away(self, name: str) -> None:
        is_free = name not in self.loaded or (self._shelf and name not in self._kept and self._shelf.put_back(name))
        if not is_free and name in self.movable:
            self.networks[name].to("cpu")

    def _fetch(self, name: str, device: torch.device) -> None:
        if self._shelf and self._shelf.has(name):
            self._shelf.take(name)
        if name in self.movable:
            self.networks[name].to(device)

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute: lower precision where it was asked for, fp32 parameters or not."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @cached_property
    def path(self) -> DiffusionPath:
        return noise_path(self.scheduler).to(self.device)

    def module_paths(self) -> list[str]:
        """Component and dotted path of every module that an adapter could name."""
        return [f"{name}.{path}" for name, part in self.components.items() for path, _ in part.named_modules() if path]

    def patterns(self, target: str) -> tuple[str, ...]:
        """What a target of a job means here: the layers of a preset that is the family's own, or itself."""
        return self.presets.get(target, (target,))

    def adaptable_encoders(self) -> tuple[str, ...]:
        """The text encoders that an adapter may change. MismatchError when there is none."""
        found = tuple(name for name in self.text_encoder_names if name in self.adaptable)
        if not found:
            raise MismatchError(
                f"nothing loads adapters for the text encoder of {self.title}: leave adapter.text_encoder out"
            )
        return found

    def end_in_pure_noise(self) -> None:
        """Trains and samples along a path whose last step has no signal. MismatchError for a model that predicts ε."""
        if not isinstance(self.path, NoisePath):
            raise MismatchError("a flow model ends in pure noise as it is: leave noise.zero_terminal_snr out")
        self.path = self.path.with_zero_terminal_snr()
        config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self.scheduler = self.pipeline.scheduler = type(self.scheduler).from_config(self.scheduler.config, **config)

    def enable_gradient_checkpointing(self) -> None:
        cast(Any, self.denoiser).enable_gradient_checkpointing()

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Posterior:
        """Pictures (n, 3, height, width) in [-1, 1] → their posterior in the denoiser's scale.

        Contiguous, as it will be when it comes from a file: arithmetic rounds otherwise in other memory layouts.
        """
        mean, spread = self.moments(pictures.to(self.device, self.vae.dtype))
        scaled = ((mean.float() - self.shift) * self.scale).contiguous()
        return Posterior(scaled, None if spread is None else (spread.float() * self.scale).contiguous())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) in the denoiser's scale → pictures (n, 3, height, width) in [-1, 1]."""
        return self.decoded(latents / self.scale + self.shift)

    def told(self, captions: Sequence[str]) -> Conditioning:
        """What `encode_text` returns, on the denoiser's device wherever the texts were read."""
        said = self.encode_text(captions)
        return on_device(said, self.device) if self.texts_on_cpu else said

    def written_out(self, texts: Sequence[str], pipeline: Any = None) -> list[str]:
        """Texts in which each learned token of several vectors is as many words, for a pipeline that doesn't see to it:
        the model's own, or another on its networks.
        """
        from diffusers.loaders import TextualInversionLoaderMixin

        if isinstance(pipeline or self.pipeline, TextualInversionLoaderMixin):
            return list(texts)
        loader = TextualInversionLoaderMixin()
        return [loader.maybe_convert_prompt(text, self.tokenizer) for text in texts]

    def arguments(self, wanted: Mapping[str, Any], pipeline: Any = None) -> dict[str, Any]:
        """The pipeline's, or another's on its networks, for a `prompt`, `negative_prompt`, `guidance_scale`, … as
        Stable Diffusion is told them.
        """
        texts = {name: self.written_out(wanted[name], pipeline) for name in ("prompt", "negative_prompt")}
        return self.request({**wanted, **texts})

    def paint(self, **wanted: Any) -> Any:
        """What the pipeline makes of them."""
        return self.pipeline(**self.arguments(wanted))
