"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): column after column, what rounding spoils the columns to come mend.

With H = Σ x xᵀ + λI and U the upper Cholesky factor of H⁻¹, rounding column q by δ_q = w_q − ŵ_q makes the others best
by w_j −= δ_q U_qj / U_qq, j > q. Weights that are zero stay so, and others make up for that as well: what pruning took
out is not given back (SparseGPT: Frantar and Alistarh 2023, arXiv 2301.00774).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutti.models.quantized import Codes, encode, grid

#: λ as a share of the mean of H's diagonal.
_DAMPING = 0.01
#: Columns that are mended at once, about.
_BLOCK = 128


def gptq(weight: Tensor, products: Tensor, group: int) -> Codes:
    """`weight` [rows, columns] with 4 bits, `group` columns sharing a scale, for inputs with Σ x xᵀ = `products`."""
    rows, columns = weight.shape
    there = (weight != 0).float()
    left = weight.float().clone()
    left[:, products.diagonal() == 0] = 0  # nothing ever comes in there
    factor = _factor(products)
    code = torch.empty(rows, columns, dtype=torch.uint8)
    scales, zeros = [], []
    block = max(1, _BLOCK // group) * group
    for start in range(0, columns, block):
        end = min(columns, start + block)
        part = left[:, start:end]
        errors = torch.empty_like(part)
        for place in range(end - start):
            if place % group == 0:
                scale, zero = grid((part * there[:, start:end])[:, None, place : place + group], 4)
                assert zero is not None
                scales.append(scale)
                zeros.append(zero)
            at = start + place
            code[:, at] = encode((part[:, place] * there[:, at])[:, None, None], scale, zero)[:, 0, 0]
            assert zero is not None
            rounded = (code[:, at].float() - zero[:, 0].float()) * scale[:, 0]
            errors[:, place] = (part[:, place] - rounded) / factor[at, at]
            part[:, place:] -= errors[:, place, None] * factor[at, at:end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return Codes(code, torch.cat(scales, 1), torch.cat(zeros, 1))


def _factor(products: Tensor) -> Tensor:
    """The upper Cholesky factor of (`products` + λI)⁻¹."""
    damped = products.double().clone()
    idle = damped.diagonal() == 0
    damped.diagonal()[idle] = 1.0
    damped.diagonal().add_(_DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
