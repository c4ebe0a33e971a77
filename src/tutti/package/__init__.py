"""A model in a directory of its own, with all that it takes to ask it or to let it write; see `directory`."""

from tutti.package.asker import Asker
from tutti.package.directory import (
    Engine,
    Package,
    is_package,
    open_any,
    open_package,
    open_writer,
    package_bytes,
    publish_package,
    refuse_to_replace,
    write_package,
)
from tutti.package.filler import Filler
from tutti.package.writer import Writer

__all__ = [
    "Asker",
    "Engine",
    "Filler",
    "Package",
    "Writer",
    "is_package",
    "open_any",
    "open_package",
    "open_writer",
    "package_bytes",
    "publish_package",
    "refuse_to_replace",
    "write_package",
]
