"""Means other than the sum that are linear combinations still: their coefficients follow from inner products alone.

A rule takes the Gram matrix of one module's updates (n, n), fp64, and a weight for each of them, and returns the
coefficients of Σ cᵢ·ΔWᵢ. It works module by module. An update of norm 0 has no direction, and so no say in one.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rule = Callable[[Tensor, Sequence[float]], list[float]]

PARALLEL = 1e-3  # an angle (or its distance from π) below which the arc can't be told from the chord


def slerp(gram: Tensor, weights: Sequence[float]) -> list[float]:
    """Spherical interpolation of two updates, t = w₁ / (w₀ + w₁) of the way: sin((1 − t)θ)/sin θ and sin(tθ)/sin θ.

    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3. Linear where there is no arc.
    """
    total = math.fsum(weights)
    near, far = weights[0] / total, weights[1] / total
    size = math.sqrt(float(gram[0, 0] * gram[1, 1]))
    theta = math.acos(_cosine(float(gram[0, 1]) / size)) if size else 0.0
    if math.sin(theta) < PARALLEL:
        return [near, far]
    return [math.sin(near * theta) / math.sin(theta), math.sin(far * theta) / math.sin(theta)]


def karcher(gram: Tensor, weights: Sequence[float]) -> list[float]:
    """The Karcher mean of the directions (Karcher 1977: least Σ wᵢ·angle²) with the weighted mean of the norms.

    Linear where opposite directions leave no mean.
    """
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    norms = gram.diagonal().sqrt()
    live = norms > 0
    unit = torch.where(live, 1 / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)  # 1 / ‖ΔWᵢ‖
    direction = _mean_direction(gram * unit * unit[:, None], w * live)
    return [float(c) for c in (w if direction is None else direction * unit * (w @ norms))]


def _mean_direction(cosines: Tensor, w: Tensor) -> Tensor | None:
    """The unit vector μ = Σ cᵢ·uᵢ to which the geodesics to all uᵢ sum to zero, as c; by steps along their mean."""
    length = float((w @ cosines @ w).clamp_min(0).sqrt())
    if length < PARALLEL:
        return None
    mean = w / length
    for _ in range(100):
        to_mean = (cosines @ mean).clamp(-1, 1)
        theta = to_mean.acos()
        stretch = torch.where(theta > 1e-9, theta / theta.sin().clamp_min(1e-12), 1.0)
        step = w * stretch - (w * stretch * to_mean).sum() * mean  # Σ wᵢ·log_μ(uᵢ)
        size = float((step @ cosines @ step).clamp_min(0).sqrt())
        if size < 1e-12:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
    return mean


def stock(gram: Tensor, _weights: Sequence[float]) -> list[float]:
    """Model Stock: t times the mean, t = N·cos θ / (1 + (N − 1)·cos θ) with the mean cosine of the N updates' pairs.

    Jang et al. 2024, arXiv 2403.19522, section 4.2, layer by layer; the base is ΔW = 0. Below a cosine of 0 it is 0.
    """
    norms = gram.diagonal().sqrt()
    live = norms > 0
    n = int(live.sum())
    if n < 2:
        return live.double().tolist()
    cosines = (gram / (norms * norms[:, None]))[live][:, live]
    cosine = max(0.0, float((cosines.sum() - n) / (n * (n - 1))))
    return (live * (cosine / (1 + (n - 1) * cosine))).tolist()


def _cosine(value: float) -> float:
    return min(1.0, max(-1.0, value))


RULES: Mapping[str, Rule] = {"slerp": slerp, "karcher": karcher, "stock": stock}
