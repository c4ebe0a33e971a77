"""What the formulas that plans are made with say of a rank's memory, as they stand in the papers.

State: ZeRO (Rajbhandari et al., arXiv 1910.02054), with fp32 parameters, gradients and two moments. Activations of a
layer: s·b·h·(18 + 4f/h) bytes in 16 bits without dropout masks' share being taken out (Korthikanti et al.,
arXiv 2205.05198, with an attention that keeps no scores), 2·s·b·h when it is computed again; twice that in 32 bits.
In flight: Narayanan et al., arXiv 2104.04473. They know nothing of gated feed-forward layers, of buffers, or of what
an implementation really keeps: that is the point of the comparison.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from tutti.config import LayoutConfig

_FP32 = 4


def peak_bytes(
    config: PretrainedConfig,
    parameters: int,
    layout: LayoutConfig,
    *,
    recompute: str,
    sequence: int,
    micro_batch: int,
    micro_batches: int,
) -> float:
    """Of the first stage's rank: parameters, gradients, optimizer and activations (`selective`: as `none`)."""
    p, t, data = layout.pipeline, layout.tensor, layout.data
    own = parameters / (p * t)
    shared = {1: (1.0, 1.0), 2: (1.0, 1 / data), 3: (1 / data, 1 / data)}[layout.zero]
    state = _FP32 * own * (shared[0] + shared[1] + 2 / data)
    block = parameters / config.num_hidden_layers / t
    gathered = 2 * _FP32 * block if data > 1 and layout.zero == 3 else 0.0
    sbh = sequence / layout.context * micro_batch * config.hidden_size
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    factor = 2.0 if recompute == "full" else 18 + 4 * wide / config.hidden_size
    layers = config.num_hidden_layers / p
    activations = 2 * sbh * factor / t * layers * in_flight(layout, micro_batches)
    return state + gathered + activations


def in_flight(layout: LayoutConfig, micro_batches: int) -> float:
    """Micro-batches whose activations the first stage holds."""
    p, v = layout.pipeline, layout.stages_per_rank
    if p == 1:
        return 1
    if layout.schedule == "gpipe":
        return micro_batches
    return min(micro_batches, p) * (1 if layout.schedule == "1f1b" else 1 + (p - 1) / (p * v))
