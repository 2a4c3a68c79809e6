"""CUDA's autocast, told of shapes: which operations take the lower precision, and which always compute in fp32.

Autocast itself does nothing on a machine without CUDA. The names are those of torch's table for CUDA, as far as
diffusion models call them (torch.amp, "CUDA Ops that can autocast to float16" and "to float32").
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

LOWER = (
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    "scaled_dot_product_attention",
)
FULL = (
    *("layer_norm", "group_norm", "norm", "softmax", "log_softmax", "softplus", "cosine_similarity"),
    *("pow", "__pow__", "rsqrt", "reciprocal", "exp", "log", "sum", "prod", "cumsum"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
)


class Autocast(TorchFunctionMode):
    """Casts the floating-point arguments of the operations named in `lower` to `dtype`, and of `full` to fp32."""

    def __init__(self, dtype: torch.dtype, lower: Collection[str] = LOWER, full: Collection[str] = FULL) -> None:
        super().__init__()
        self.dtypes = dict.fromkeys(lower, dtype) | dict.fromkeys(full, torch.float32)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        dtype = self.dtypes.get(getattr(func, "__name__", ""))
        if dtype is None:
            return func(*args, **(kwargs or {}))

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return func(*tree_map(cast, args), **tree_map(cast, dict(kwargs or {})))
