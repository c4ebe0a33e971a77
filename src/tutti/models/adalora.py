"""AdaLoRA: matrices beside a model's own that are given as much rank as they turn out to need (peft's allocator).

Beside a matrix stands P diag(λ) Q. After every step the sensitivity of each number, |w · ∂L/∂w|, and how much that
sways are averaged; of all λ of the model the least important are set to zero, ever more of them until so many are left
as the budget allows (Zhang et al. 2023, arXiv 2303.10512, equations 8 to 13). Those averages, and which λ are kept, are
state of the run: they lie in the optimizer's state, beside its own averages, and are saved and handed over with them.

The allocator looks at the gradient that the step was made with. So all replicas must have had the same one, whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: AdaLoRA begins with so much more rank than it ends with (the paper's b⁰ = 1.5 bᵀ).
_START = 1.5
#: Shares of the steps before the first rank is taken away, and after the last.
_WARMUP, _SETTLED = 0.1, 0.3
#: How often ranks are reckoned anew in between.
_TIMES = 100
_SENSITIVITY, _UNCERTAINTY, _KEPT = "sensitivity", "uncertainty", "kept"


def adalora_settings(rank: int, alpha: int | None, dropout: float, steps: int, **common: Any) -> Any:
    """peft's settings for a run of so many `steps` that leaves `rank` of each matrix on average; `alpha` None: such
    that what is added is multiplied by 2."""
    from peft import AdaLoraConfig

    start = max(rank + 1, round(_START * rank))
    return AdaLoraConfig(
        **common,
        target_r=rank,
        init_r=start,
        lora_alpha=2 * start if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        total_step=steps,
        tinit=int(_WARMUP * steps),
        tfinal=int(_SETTLED * steps),
        deltaT=max(1, round((1 - _WARMUP - _SETTLED) * steps / _TIMES)),
    )


class RankAllocation:
    """Gives and takes rank while an adapted model trains. `tuner`: peft's `AdaLoraModel`, which did the adapting."""

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner
        self._settings = tuner.peft_config[tuner.trainable_adapter_name]
        self._state: dict[str, dict[str, Tensor]] = {}

    def keep_in(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Have the statistics in the state of the `optimizers`, which must have made their own already."""
        names = {id(parameter): name for name, parameter in self._adapters()}
        for optimizer in optimizers:
            for parameter, values in optimizer.state.items():
                if (name := names.get(id(parameter))) is None:
                    continue
                values[_SENSITIVITY], values[_UNCERTAINTY] = (torch.zeros_like(parameter) for _ in range(2))
                if "lora_E" in name:
                    values[_KEPT] = torch.ones_like(parameter)
                self._state[name] = values
        assert self._state.keys() == set(names.values()), "every adapter learns"

    def penalty(self) -> Tensor:
        """γ · mean of ‖QQᵀ − 1‖ and ‖PᵀP − 1‖ over all matrices (equation 7, as peft reckons it): a scalar."""
        apart = []
        for name, parameter in self._adapters():
            if "lora_E" in name:
                continue
            square = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            apart.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
        weight: float = self._settings.orth_reg_weight
        return weight * torch.stack(apart).mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Step number `step` (from 1) was made with the gradients that the parameters have."""
        allocator = self._tuner.rankallocator
        allocator.exp_avg_ipt = {name: values[_SENSITIVITY] for name, values in self._state.items()}
        allocator.exp_avg_unc = {name: values[_UNCERTAINTY] for name, values in self._state.items()}
        allocator.ipt = dict.fromkeys(self._state)
        self._settings.rank_pattern = {
            name: values[_KEPT].bool().view(-1).tolist()
            for name, values in self._state.items()
            if _KEPT in values
        }
        self._tuner.update_and_allocate(step)
        for name, values in self._state.items():
            if name in allocator.exp_avg_ipt:  # in the end peft forgets them
                values[_SENSITIVITY].copy_(allocator.exp_avg_ipt[name])
                values[_UNCERTAINTY].copy_(allocator.exp_avg_unc[name])
            if _KEPT in values:
                kept = self._settings.rank_pattern[name]
                values[_KEPT].copy_(torch.tensor(kept, dtype=values[_KEPT].dtype).view(-1, 1))

    def _adapters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._tuner.model.named_parameters() if "lora_" in name]


def kept_ranks(model: nn.Module) -> dict[str, list[bool]]:
    """Which λ of each adapted matrix of `model` are not zero, by the name of the parameter that holds them."""
    return {name: (p != 0).view(-1).tolist() for name, p in model.named_parameters() if ".lora_E." in name}
