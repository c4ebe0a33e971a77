"""Models: built from one dial, any Hugging Face configuration or directory; generated from; exported; counted."""

from tutti.models.adapters import model_directory
from tutti.models.blocks import all_blocks, find_blocks
from tutti.models.blueprint import Blueprint, fill, units
from tutti.models.build import build_model, draw_blueprint
from tutti.models.export import export_model, publish_export
from tutti.models.flops import ParameterCount, count_parameters, flops_per_masked_token, flops_per_token
from tutti.models.generate import generate, generate_from
from tutti.models.headed import draw_headed_blueprint, find_body
from tutti.models.heads import (
    HeadedBlueprint,
    build_with_head,
    build_writer,
    is_encoder_decoder,
    load_with_head,
    load_writer,
)
from tutti.models.lookup import add_rows_only
from tutti.models.presets import Preset, choose_preset, parse_size

__all__ = [
    "Blueprint",
    "HeadedBlueprint",
    "ParameterCount",
    "Preset",
    "add_rows_only",
    "all_blocks",
    "build_model",
    "build_with_head",
    "build_writer",
    "choose_preset",
    "count_parameters",
    "draw_blueprint",
    "draw_headed_blueprint",
    "export_model",
    "fill",
    "find_blocks",
    "find_body",
    "flops_per_masked_token",
    "flops_per_token",
    "generate",
    "generate_from",
    "is_encoder_decoder",
    "load_with_head",
    "load_writer",
    "model_directory",
    "parse_size",
    "publish_export",
    "units",
]
