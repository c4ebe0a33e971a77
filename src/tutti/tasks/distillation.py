"""Learning from what other models predict: T² · KL(teacher ‖ student), summed over targets, and its gradient.

With logits z of the student, u of the teacher, p = softmax(z ÷ T) and q = softmax(u ÷ T) (Hinton et al. 2015,
arXiv 1503.02531):

    L      = T² Σ_a q_a (log q_a − log p_a)
    ∂L/∂z  = T (p − q)

T² keeps the gradient's size as T grows. Of several teachers the mean of their L is taken, whose gradient is that of
the KL to their mean prediction (Anil et al. 2018, arXiv 1804.03235: codistillation).

**Few numbers of a prediction.** A teacher may send only the k likeliest tokens K. The rest is one event, "another
token", of mass q_r = 1 − Σ_K q and, for the student, p_r = Σ_{a∉K} p_a:

    L      = T² ( Σ_K q_a (log q_a − log p_a) + q_r (log q_r − log p_r) )
    ∂L/∂z  = T (p_a − q_a) in K,    T p_a (1 − q_r ÷ p_r) elsewhere

So the student learns how much mass the rest has, and nothing about how it is spread: there the teacher agrees with
whatever the student believes. It never exceeds the KL of the whole prediction, and is equal to it for k = V.

Shapes: n targets, V vocabulary, k tokens that were sent, M models that teach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutti.tasks.terms import Added


def soften(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits ÷ T), [n, V]."""
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, 1)


def likeliest(log_chances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens of log probabilities [n, V]: ids [n, k] and probabilities [n, k]."""
    values, ids = log_chances.topk(count, 1, sorted=False)
    return ids, values.exp()


def divergence(log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL [n] to whole predictions (both log probabilities at T, [n, V]), and p − q [n, V]."""
    teacher = log_teacher.exp()
    apart = (teacher * (log_teacher - log_student)).sum(1)
    return apart, log_student.exp() - teacher


def reverse_divergence(log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) [n], weighed by the student's own p; and p (log p − log q − KL) [n, V] in the place of p − q."""
    student, unlike = log_student.exp(), log_student - log_teacher
    apart = (student * unlike).sum(1)
    return apart, student * (unlike - apart[:, None])


def sparse_divergence(log_student: Tensor, ids: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """The same to predictions of which `ids` [n, k] and their `chances` [n, k] are known (see the module's head)."""
    chances = chances.to(log_student.dtype)
    student = log_student.exp()
    known = student.gather(1, ids)
    outside = student.scatter(1, ids, 0.0)
    # Summed, not 1 − Σ: what is left of a confident prediction is smaller than the rounding of 1.
    rest, smallest = outside.sum(1), torch.finfo(student.dtype).tiny
    is_rest = rest > 0
    theirs = (1 - chances.sum(1)).clamp_min(0.0) * is_rest
    rest = rest.clamp_min(smallest)
    apart = (torch.special.xlogy(chances, chances) - chances * log_student.gather(1, ids)).sum(1)
    apart = apart + torch.special.xlogy(theirs, theirs) - theirs * rest.log()
    difference = outside * (1 - theirs / rest)[:, None]
    difference.scatter_(1, ids, known - chances)
    return apart, difference


def mean_over_teachers(
    found: Sequence[tuple[Tensor, Tensor]], present: Tensor, weight: float, temperature: float
) -> Added:
    """weight · T² · mean KL over the teachers that have something to say about a target.

    Args:
        found: of each of M teachers the KL [n] and p − q [n, V].
        present: [M, n] bool: which of these count. Elsewhere they may hold anything finite.
        weight: of the term beside the cross-entropy.
        temperature: T.
    """
    share = present / present.sum(0).clamp_min(1)
    total = torch.zeros((), dtype=found[0][0].dtype, device=present.device)
    gradient = torch.zeros_like(found[0][1])
    for (apart, difference), part in zip(found, share.to(total.dtype), strict=True):
        total += (apart * part).sum()
        gradient += difference * part[:, None]
    return Added(total * (weight * temperature**2), gradient.mul_(weight * temperature))
