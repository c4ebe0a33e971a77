"""A row of a file, before anybody has judged what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Record(NamedTuple):
    """Named fields, and where they stand: `origin` is like `train.tsv:17`."""

    origin: str
    fields: Mapping[str, Any]


#: What a model can be asked about: a text, the fields of an example as the user's files have them, or a row of one.
Asked = str | Mapping[str, Any] | Record
