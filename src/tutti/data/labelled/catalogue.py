"""What items are, in words: read from a file, and as vectors that are alike where the words are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.config.data import DataConfig
from tutti.core.errors import DataError
from tutti.data.listing import list_sources
from tutti.data.settings import FORMATS
from tutti.data.sources.records import read_records

#: Numbers of a vector, at most.
_WIDTH = 256


def read_catalogue(config: DataConfig, source: str) -> dict[str, str]:
    """The text of each item in the file `source`.

    Raises:
        DataError: a record has no item or no text, or an item stands there twice.
    """
    found: dict[str, str] = {}
    for file in list_sources(config.model_copy(update={"format": "auto"}), source, tuple(FORMATS)):
        for record in read_records(file, config.encoding):
            item, text = record.fields.get("item"), record.fields.get("text")
            if isinstance(item, bool) or not isinstance(item, str | int) or not isinstance(text, str):
                raise DataError(
                    f"{record.origin} does not describe an item",
                    "each record of task.catalogue must have an `item` and a `text`",
                )
            if str(item) in found:
                raise DataError(f"{record.origin} describes the item '{item}' again", "delete one of the two")
            found[str(item)] = text
    return found


def vectors_of(names: tuple[str, ...], described: Mapping[str, str]) -> NDArray[np.float32]:
    """[names, at most 256]: what is said of each, nothing: zeros. TF-IDF of words and pairs of words, of which the
    directions that tell most apart are kept (latent semantic analysis), the first the most telling.
    """
    from sklearn.decomposition import TruncatedSVD  # takes seconds
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [described.get(name, "") for name in names]
    try:
        weigh: Any = TfidfVectorizer
        weighed = weigh(ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    except ValueError as error:  # scikit-learn's way to say that there is not a single word
        raise DataError("task.catalogue holds no words", "describe the items in words") from error
    width = min(_WIDTH, min(weighed.shape) - 1)
    if width < 1:
        return np.zeros((len(names), 1), np.float32)
    reduce: Any = TruncatedSVD
    found: NDArray[np.float32] = reduce(width, random_state=0).fit_transform(weighed).astype(np.float32)
    return found
