"""AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that are large get more of the grid.

With s_i = (mean |x_i|)^α, W x = (W diag(s)) (x / s); the exponent is the one of a few for which rounding W diag(s)
changes what the layer gives least: Σ ‖(Ŵ − W) x‖² = tr((Ŵ − W) (Σ x xᵀ) (Ŵ − W)ᵀ), Ŵ = round(W diag(s)) diag(s)⁻¹.
"""

from __future__ import annotations

from torch import Tensor

from tutti.compress.quantize.inputs import Inputs
from tutti.models.quantized import Codes, round_to_nearest

_EXPONENTS = [step / 10 for step in range(10)]


def awq(weight: Tensor, inputs: Inputs, group: int) -> tuple[Codes, Tensor]:
    """`weight` [rows, columns] with 4 bits, and what inputs are multiplied by before [columns]."""
    sizes = inputs.mean_size.clamp_min(1e-4)
    best: tuple[float, Codes, Tensor] | None = None
    for exponent in _EXPONENTS:
        scale = sizes**exponent
        scale = scale / (scale.max() * scale.min()).sqrt()
        codes = round_to_nearest(weight * scale, 4, group)
        apart = codes.weight() / scale - weight
        error = float(((apart @ inputs.products) * apart).sum())
        if best is None or error < best[0]:
            best = error, codes, 1 / scale
    assert best is not None
    return best[1], best[2]
