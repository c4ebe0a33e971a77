"""One strict schema; loading with every problem reported at once."""

from tutti.config.agreement import CooperateConfig, SyncConfig
from tutti.config.alerts import AlertsConfig, ServiceAlertsConfig
from tutti.config.data import DataConfig
from tutti.config.dump import dump_changes, dump_config
from tutti.config.groups import count_groups, group_configs
from tutti.config.layout import LayoutConfig
from tutti.config.load import load_config, load_service, parse_config
from tutti.config.model import ModelConfig
from tutti.config.problems import InvalidConfig, Problem
from tutti.config.reference import json_schema, reference_page, service_page
from tutti.config.schema import Config
from tutti.config.search import (
    Choice,
    Dimension,
    Plain,
    Range,
    search_space,
    show_setting,
    value_at,
    with_settings,
)
from tutti.config.service import ServiceConfig
from tutti.config.training import CheckpointConfig, EvaluateConfig, TrainConfig, WatchConfig

__all__ = [
    "AlertsConfig",
    "CheckpointConfig",
    "Choice",
    "Config",
    "CooperateConfig",
    "DataConfig",
    "Dimension",
    "EvaluateConfig",
    "InvalidConfig",
    "LayoutConfig",
    "ModelConfig",
    "Plain",
    "Problem",
    "Range",
    "ServiceAlertsConfig",
    "ServiceConfig",
    "SyncConfig",
    "TrainConfig",
    "WatchConfig",
    "count_groups",
    "dump_changes",
    "dump_config",
    "group_configs",
    "json_schema",
    "load_config",
    "load_service",
    "parse_config",
    "reference_page",
    "search_space",
    "service_page",
    "show_setting",
    "value_at",
    "with_settings",
]
