"""Bytes that live tensors take, watched operator by operator: exact, and the same on every device and machine."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with TensorBytes(existing) as bytes: …` — then `bytes.peak` is what lived at once, `bytes.now` what still does.

    Storages count, not tensors: views cost nothing. What torch's operators need inside themselves is not seen, what
    operators written in Python need is. Tensors on the meta device do not count, which have no memory, nor those that
    lie in files.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[UntypedStorage]] = {}
        for tensor in existing:
            self._see(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written_in_python = OPDEFS.get(function.name())
        if written_in_python is not None and not any(
            isinstance(leaf, FakeTensor) for leaf in tree_leaves(args)
        ):
            with self:
                result = written_in_python._init_fn(*args, **(kwargs or {}))
        else:
            result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor._local_tensor
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        if storage.filename is not None:
            return
        key, size = storage._cdata, storage.nbytes()
        before = self._known.get(key)
        if before is None:
            self._storages[key] = weakref.ref(storage)
            weakref.finalize(storage, self._forget, key)
        if before != size:
            self._known[key] = size
            self.now += size - (before or 0)
            if self.now > self.peak:
                self._look_again()
            self.peak = max(self.peak, self.now)

    def _look_again(self) -> None:
        """FSDP lets go of what it gathered by resizing storages, which no operator shows."""
        for key, reference in self._storages.items():
            storage = reference()
            if storage is not None and storage.nbytes() != self._known[key]:
                self.now += storage.nbytes() - self._known[key]
                self._known[key] = storage.nbytes()

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)
        self._storages.pop(key, None)
