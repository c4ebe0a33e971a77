"""`source: python-stdlib`: the text that every machine with Python has.

The modules of the standard library without its tests, its editor, generated tables and what other projects put
beside it.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tutti.core.errors import DataError

#: Directories that are no library source, wherever they occur below the standard library.
LEFT_OUT = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",  # tables, generated, each like the next
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",  # one huge string
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)


def stdlib_files() -> Iterator[Path]:
    """The modules of this Python's standard library, in no particular order.

    Raises:
        DataError: this Python carries no source (an embedded distribution, for instance).
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for directory, directories, files in os.walk(root):
        directories[:] = [name for name in directories if name not in LEFT_OUT]
        for name in files:
            if name.endswith(".py"):
                found = True
                yield Path(directory) / name
    if not found:
        raise DataError(
            f"this Python has no source of its standard library at {root}",
            "set data.source to a file or folder of text",
        )
