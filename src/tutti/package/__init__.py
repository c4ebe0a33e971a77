"""A model in a directory of its own, with all that it takes to ask it; written by `compress` and `combine`."""

from tutti.package.asker import Asker
from tutti.package.directory import (
    Engine,
    Package,
    is_package,
    open_package,
    package_bytes,
    publish_package,
    refuse_to_replace,
    write_package,
)

__all__ = [
    "Asker",
    "Engine",
    "Package",
    "is_package",
    "open_package",
    "package_bytes",
    "publish_package",
    "refuse_to_replace",
    "write_package",
]
