"""Labelled examples: read, checked, cut into rows of tokens and kept in the cache, for the tasks of `tutti.tasks`."""

from tutti.data.labelled.gather import FORMER, known_by
from tutti.data.labelled.prepare import Reader, encoder_in, encoder_of, prepare_examples
from tutti.data.labelled.prepared import PreparedExamples, open_examples
from tutti.data.labelled.readable import read_file, to_be_asked
from tutti.data.labelled.source import ExampleSource
from tutti.data.labelled.table import ListedRows
from tutti.data.sources.records import read_jsonl

__all__ = [
    "FORMER",
    "ExampleSource",
    "ListedRows",
    "PreparedExamples",
    "Reader",
    "encoder_in",
    "encoder_of",
    "known_by",
    "open_examples",
    "prepare_examples",
    "read_file",
    "read_jsonl",
    "to_be_asked",
]
