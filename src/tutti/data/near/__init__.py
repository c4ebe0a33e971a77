"""Near duplicates: signatures by MinHash, bands by locality-sensitive hashing, on disk."""
