"""Tensor and sequence parallelism: ranks compute each pair of matrices together.

Of a pair, the first matrix is cut by columns (each rank computes some heads, or some of the hidden units), the
second by rows (each rank has a summand of the result). In between nothing needs to be said. Outside the pair
each rank holds a piece of the sequence, so norms and residuals are not computed twice and activations are small:

    piece [B, S/t, D] ─gather→ [B, S, D] ─columns→ [B, S, F/t] ─rows→ summands [B, S, D] ─scatter→ piece

(Megatron-LM: Shoeybi et al., arXiv 1909.08053; the sequence: Korthikanti et al., arXiv 2205.05198.) Which matrices
make a pair says the architecture's own `base_model_tp_plan`, else it is derived from names and shapes. Either way
the split twin of the model has to compute what the whole twin does before anything is trained.

Whatever is not cut inside a block sees only a piece of the sequence or some of the heads, so the gradients of
those parameters are summands: `summed` names them, and the step adds them up.

Encoders (`heads`) pack the tokens of unlike rows behind each other, which is no sequence to cut: there each rank has
all tokens outside the pair as well, and computes alike what is neither cut nor between two matrices of a pair:

    [B, S, D] ─share→ [B, S, D] ─columns→ [B, S, F/t] ─rows→ summands [B, S, D] ─total→ [B, S, D]

Shapes: B samples, S tokens, D model width, F hidden units or heads × head width, t ranks.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers.pytorch_utils import Conv1D

from tutti.core import ModelError
from tutti.models import find_blocks
from tutti.parallel import collectives
from tutti.parallel.load import by_name, fill_pieces, make_room, named_tensors
from tutti.parallel.local import keep_piece
from tutti.parallel.vocabulary import split_embedding
from tutti.sync.policy import local_part
from tutti.tasks.manner import Manner, body_of, run_model
from tutti.tasks.packing import Rows

#: Last parts of the names of matrices that write into the residual stream.
_ROW_NAMES = {
    "o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2", "fc_out", "wo", "w2", "dense_4h_to_h",
    "out_lin", "lin2", "Wo",
}  # fmt: skip
_COLUMN_STYLES, _ROW_STYLES = {"colwise"}, {"rowwise"}
_WHOLE_STYLES = {"replicated_with_grad_allreduce", "sequence_parallel"}
#: Attributes of an attention module that count what is cut.
_COUNTS = ("split_size", "num_heads", "num_key_value_heads", "num_attention_heads", "all_head_size")


@dataclass(frozen=True)
class TensorPlan:
    """Names of matrices inside a block, and how each is cut.

    columns: name → in how many matrices, one after another, it has to be cut (3: query, key and value in one).
    rows: names. counts: whether integers of the modules that count heads or widths have to be divided as well.
    """

    columns: dict[str, int] = field(default_factory=dict)
    rows: frozenset[str] = frozenset()
    counts: bool = False


def candidates(model: Any) -> Iterator[TensorPlan]:
    """Plans for the blocks of `model`, the likeliest first.

    Raises:
        ModelError: the architecture asks for something that Tutti cannot do; names it.
    """
    own = getattr(model.base_model, "_tp_plan", None) or getattr(model.config, "base_model_tp_plan", None)
    if own:
        yield _from_own(model, own)
        return
    blocks = find_blocks(model)
    columns, rows = {}, set()
    for block in blocks:
        for name, module in block.named_modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            if name.rpartition(".")[2] in _ROW_NAMES and not _widens(module):
                rows.add(name)
            else:
                columns[name] = _matrices_in(block, name)
    fused = any(count > 1 for count in columns.values())
    for packed, counts in [(True, False), (True, True), (False, False), (False, True)]:
        if fused or not packed:
            cuts = {name: count if packed else 1 for name, count in columns.items()}
            yield TensorPlan(cuts, frozenset(rows), counts)


def _from_own(model: Any, own: dict[str, str]) -> TensorPlan:
    columns, rows = {}, set()
    for pattern, style in own.items():
        found = re.fullmatch(r"[\w.]+?\.\*\.(.+)", pattern)
        if found is None:
            continue  # outside the blocks
        if style in _COLUMN_STYLES:
            columns[found[1]] = 1
        elif style in _ROW_STYLES:
            rows.add(found[1])
        elif style not in _WHOLE_STYLES:
            raise ModelError(
                f"{model.config.model_type} cannot be split by layout.tensor: its {found[1]} asks for '{style}'",
                "use layout.shard, layout.pipeline or layout.context instead",
            )
    return TensorPlan(columns, frozenset(rows))


def _widens(module: nn.Module) -> bool:
    inputs, outputs = _sides(module)
    return outputs > inputs


def _matrices_in(block: nn.Module, name: str) -> int:
    """How many matrices the one of that `name` in `block` holds: as many as fill the inputs of the one behind it, where
    the two are alone in a module; else of queries, keys and values three."""
    module, parent = block.get_submodule(name), block.get_submodule(name.rpartition(".")[0])
    inputs, outputs = _sides(module)
    pair = [child for child in parent.children() if isinstance(child, nn.Linear | Conv1D)]
    if len(pair) == 2 and pair[0] is module:
        behind = _sides(pair[1])[0]
        return outputs // behind if outputs in (2 * behind, 3 * behind) else 1
    return 3 if outputs == 3 * inputs else 1


def _sides(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a matrix; transformers' Conv1D holds it transposed."""
    first, second = module.weight.shape  # type: ignore[misc]
    return (first, second) if isinstance(module, Conv1D) else (second, first)


@dataclass
class CutMatrices:
    """What became of the parameters of the blocks, by name.

    summed: their gradients are summands over the tensor ranks. packed: (dimension, matrices) of weights that hold
    several matrices, each of which is cut: a rank's piece is its pieces of them, one after another.
    """

    summed: list[str] = field(default_factory=list)
    packed: dict[str, tuple[int, int]] = field(default_factory=dict)


def cut_matrices(model: Any, plan: TensorPlan, mesh: DeviceMesh, *, pieces: bool = True) -> CutMatrices:
    """Cut the blocks of `model`, on the meta device or whole in memory, in place.

    `pieces`: blocks then take and give pieces of the sequence, see `cut_sequence`; else all tokens.

    Raises:
        ModelError: a matrix is not divisible by the ranks of `mesh`.
    """
    group, ways = mesh.get_group(), mesh.size()
    names = {id(module): name for name, module in model.named_modules()}
    cut = CutMatrices()
    for block in find_blocks(model):
        prefix = names[id(block)]
        entrances: dict[str, nn.Module] = {}
        for name, module in block.named_modules():
            if name in plan.columns:
                _require(model, name, _sides(module)[1], ways * plan.columns[name])
                _cut_columns(module, plan.columns[name], mesh)
                if plan.columns[name] > 1:
                    dimension = 1 if isinstance(module, Conv1D) else 0
                    cut.packed[f"{prefix}.{name}.weight"] = dimension, plan.columns[name]
                parent = name.rpartition(".")[0]
                entrances[parent] = block.get_submodule(parent)
            elif name in plan.rows:
                _require(model, name, _sides(module)[0], ways)
                _cut_rows(module, mesh, pieces=pieces)
        enter = functools.partial(_gather_input if pieces else _share_input, group)
        for entrance in entrances.values():
            entrance.register_forward_pre_hook(enter, with_kwargs=True)
            if plan.counts:
                _divide_counts(entrance, ways)
        for name, parameter in block.named_parameters():
            inside = any(name.startswith(f"{entrance}.") for entrance in entrances)
            behind = name.rpartition(".")[0] in plan.rows  # its bias is added to the sum
            if local_part(parameter) is parameter and (pieces or (inside and not behind)):
                cut.summed.append(f"{prefix}.{name}")
    return cut


def _require(model: Any, name: str, size: int, ways: int) -> None:
    if size % ways:
        raise ModelError(
            f"{model.config.model_type} cannot be split over layout.tensor = {ways}: {name} has {size} units",
            "choose a number of ranks that divides it",
        )


def _cut_columns(module: nn.Module, matrices: int, mesh: DeviceMesh) -> None:
    weight, bias = module.weight, getattr(module, "bias", None)
    dimension = 1 if isinstance(module, Conv1D) else 0
    module.weight = keep_piece(weight, dimension, mesh, matrices)  # type: ignore[arg-type]
    if matrices == 1 and bias is not None:
        module.bias = keep_piece(bias, 0, mesh)
    module.forward = functools.partial(_columns, module, matrices, mesh.get_group())


def _cut_rows(module: nn.Module, mesh: DeviceMesh, *, pieces: bool) -> None:
    dimension = 0 if isinstance(module, Conv1D) else 1
    module.weight = keep_piece(module.weight, dimension, mesh)  # type: ignore[arg-type]
    module.forward = functools.partial(_rows if pieces else _whole_rows, module, mesh.get_group())


def _columns(module: Any, matrices: int, group: dist.ProcessGroup, hidden: Tensor) -> Tensor:
    """This rank's columns of the product. (The bias of several matrices in one stays whole: it cannot be cut into
    one piece.)"""
    bias = None if module.bias is None else local_part(module.bias)
    if bias is not None and matrices > 1:
        bias = bias.view(matrices, group.size(), -1)[:, group.rank()].flatten()
    return F.linear(hidden, _as_linear(module), bias)


def _rows(module: Any, group: dist.ProcessGroup, hidden: Tensor) -> Tensor:
    """This rank's piece of the sum of all ranks' products."""
    summand = F.linear(hidden, _as_linear(module))
    result = collectives.scatter(summand, 1, group)
    return result if module.bias is None else result + local_part(module.bias)


def _whole_rows(module: Any, group: dist.ProcessGroup, hidden: Tensor) -> Tensor:
    """The sum of all ranks' products."""
    result = collectives.total(F.linear(hidden, _as_linear(module)), group)
    return result if module.bias is None else result + local_part(module.bias)


def _as_linear(module: Any) -> Tensor:
    weight = local_part(module.weight)
    return weight.t() if isinstance(module, Conv1D) else weight


def _gather_input(
    group: dist.ProcessGroup, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The hidden states, first of what a module is called with, as a whole sequence."""
    if inputs:
        return (collectives.gather(inputs[0], 1, group), *inputs[1:]), named
    return inputs, named | {"hidden_states": collectives.gather(named["hidden_states"], 1, group)}


def _share_input(
    group: dist.ProcessGroup, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The hidden states as they are; what each rank makes of them adds up to their gradient."""
    if inputs:
        return (collectives.share(inputs[0], group), *inputs[1:]), named
    return inputs, named | {"hidden_states": collectives.share(named["hidden_states"], group)}


def _divide_counts(module: nn.Module, ways: int) -> None:
    for name in _COUNTS:
        value = getattr(module, name, None)
        if isinstance(value, int) and value % ways == 0:
            setattr(module, name, value // ways)


def cut_sequence(first: nn.Module | None, last: nn.Module | None, group: dist.ProcessGroup) -> None:
    """Around the run of blocks from `first` to `last` the sequence is whole, inside each rank has a piece.

    None: the blocks before, or after, are another rank's.
    """

    def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (collectives.cut(inputs[0], 1, group), *inputs[1:]), named
        return inputs, named | {"hidden_states": collectives.cut(named["hidden_states"], 1, group)}

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (collectives.join(output[0], 1, group), *output[1:])
        return collectives.join(output, 1, group)

    if first is not None:
        first.register_forward_pre_hook(enter, with_kwargs=True)
    if last is not None:
        last.register_forward_hook(leave)


def cut_vocabulary(model: Any, mesh: DeviceMesh, *, embedding: bool, head: nn.Linear | None) -> bool:
    """Cut the embedding (where this rank has it) and the `head` by words; False: the vocabulary is not divisible."""
    table = model.get_input_embeddings() if embedding else None
    words = table.weight.shape[0] if table is not None else head.weight.shape[0] if head is not None else 0
    if words % mesh.size():
        return False
    pieces: dict[int, nn.Parameter] = {}

    def cut(owner: Any, name: str) -> None:
        whole = getattr(owner, name)
        if whole is not None and not hasattr(whole, "device_mesh"):
            piece = pieces.setdefault(id(whole), keep_piece(whole, 0, mesh))
            kept.append(whole)  # so that no other parameter gets its id
            setattr(owner, name, piece)

    kept: list[Any] = []
    if table is not None:
        cut(table, "weight")
        split_embedding(table, mesh.get_group())
    if head is not None:
        bias = head.bias
        cut(head, "weight")
        cut(head, "bias")
        for module in model.modules():  # BERT's head has its bias under a second name
            for name, parameter in list(module.named_parameters(recurse=False)):
                if bias is not None and parameter is bias:
                    setattr(module, name, head.bias)
    return True


def find_plan(twin: Any, manner: Manner, mesh: DeviceMesh) -> TensorPlan:
    """The first candidate with which the split `twin` (a small model of the kind, in memory, the same on all ranks)
    computes what the whole twin does.

    Raises:
        ModelError: there is none.
    """
    training = twin.training
    twin.eval()
    ids = (torch.arange(2 * 4 * mesh.size()) * 7919 + 11).remainder(
        twin.get_input_embeddings().weight.shape[0]
    )
    rows = Rows.of(ids.view(2, -1), ids.view(2, -1), None)
    with torch.no_grad():
        expected = run_model(body_of(twin), rows, manner.takes_positions).last_hidden_state
        found = next((p for p in candidates(twin) if _computes_the_same(twin, p, mesh, rows, expected)), None)
    twin.train(training)
    if found is None:
        raise ModelError(
            f"{twin.config.model_type} cannot be split by layout.tensor: no way was found in which the parts of a "
            "block compute what the whole block does",
            "use layout.shard, layout.pipeline or layout.context instead",
        )
    return found


def _computes_the_same(twin: Any, plan: TensorPlan, mesh: DeviceMesh, rows: Rows, expected: Tensor) -> bool:
    split = copy.deepcopy(twin).to("meta")
    agreed = torch.ones(())
    try:
        cut = cut_matrices(split, plan, mesh)
        blocks = find_blocks(split)
        cut_sequence(blocks[0], blocks[-1], mesh.get_group())
        make_room(split, torch.device("cpu"))
        fill_pieces(by_name([split], {}), named_tensors(twin), cut.packed, mesh.size())
        given = run_model(body_of(split), rows).last_hidden_state
        agreed *= float((given - expected).abs().max() <= 1e-4 * expected.abs().max())
    except (RuntimeError, ValueError):  # shapes that do not fit together, on all ranks alike
        agreed *= 0
    dist.all_reduce(agreed, dist.ReduceOp.MIN, group=mesh.get_group())
    return bool(agreed)
