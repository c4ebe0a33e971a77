"""A folder of documents from which questions are answered: read, cut into passages, searched."""

from tutti.serve.documents.folder import Document, read_folder
from tutti.serve.documents.library import Hit, Library
from tutti.serve.documents.passages import Passage, cut
from tutti.serve.documents.search import Words, fuse

__all__ = ["Document", "Hit", "Library", "Passage", "Words", "cut", "fuse", "read_folder"]
