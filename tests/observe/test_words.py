"""Figures for people."""

from tutti.observe import words


def test_sizes_never_read_a_thousand_of_the_smaller_unit() -> None:
    assert words.size(999.6e6) == "1 GB"
    assert words.size(998e6) == "998 MB"
    assert words.size(1500) == "1.5 KB"
    assert words.size(12) == "12 bytes"
