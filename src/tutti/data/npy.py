"""A one-dimensional `.npy` file of unknown length, written as it comes and put in place when it is whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tutti.core.files import fsync_directory
from tutti.core.rundir import unwritable


class NpyWriter:
    """Appends numbers to a file beside `path`; it becomes `path` when the `with` block ends without an error.

    NumPy pads the header so that a longer shape fits in: the header is rewritten in place at the end.
    """

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path = path
        self.length = 0
        self._dtype = np.dtype(dtype)
        self._beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file: BinaryIO

    def __enter__(self) -> Self:
        try:
            self._file = self._beside.open("wb")
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._header()
        return self

    def append(self, values: ArrayLike) -> None:
        """Write `values` behind what is there.

        Raises:
            RunError: the disk is full, or the file cannot be written for another reason.
        """
        array = np.asarray(values, dtype=self._dtype)
        self.length += array.size
        try:
            self._file.write(array.tobytes())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.seek(0)
                self._header()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._beside.replace(self.path)
                fsync_directory(self.path.parent)
        except OSError as problem:
            raise unwritable(self.path, problem) from problem
        finally:
            with suppress(OSError):  # closing may want to write once more to a full disk
                self._file.close()
            self._beside.unlink(missing_ok=True)

    def _header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def write_npy(path: Path, values: ArrayLike, dtype: DTypeLike) -> None:
    """Replace `path` by a whole array."""
    with NpyWriter(path, dtype) as writer:
        writer.append(values)
