"""loractl: fine-tune text-to-image diffusion models from a handful of pictures, and work on what comes out."""

__version__ = "0.1.0"
