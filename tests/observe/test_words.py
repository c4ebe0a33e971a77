"""Figures for people."""

from tutti.observe import words


def test_sizes_never_read_a_thousand_of_the_smaller_unit() -> None:
    assert words.size(999.6e6) == "1 GB"
    assert words.size(998e6) == "998 MB"
    assert words.size(1500) == "1.5 KB"
    assert words.size(12) == "12 bytes"


def test_workers_are_told_with_what_joins_and_splits_them() -> None:
    assert words.workers(1, 1, {}, "allreduce") == "1 worker"
    assert words.workers(2, 2, {"shard": 1}, "diloco") == "2 workers joined by diloco"
    assert words.workers(2, 1, {"tensor": 2}, "allreduce") == "2 workers: one copy over tensor 2"
    said = words.workers(8, 2, {"pipeline": 2, "tensor": 2}, "diloco")
    assert said == "8 workers: 2 copies joined by diloco, each over pipeline 2, tensor 2"
