"""Whatever stands in a file or an override, nothing but ConfigError comes out, in plain words."""

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutti.config import Config, dump_config, load_config, parse_config
from tutti.config.describe import all_keys
from tutti.core.errors import ConfigError

JARGON = (
    "Input should",
    "errors.pydantic",
    "model_type",
    "extra_forbidden",
    "Traceback",
    "validation error",
    "pydantic",
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**20),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["auto", "adamw", "diloco", "15M", "1e-3", "aut", "yes", "python-stdlib", "fp32"]),
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(scalars, inner, max_size=3)),
    max_leaves=6,
)
known = st.sampled_from([path[-1] for path in all_keys()])
section = st.dictionaries(st.one_of(known, known, st.text(max_size=5)), junk, max_size=4)
top = st.dictionaries(
    st.one_of(st.sampled_from(list(Config.model_fields)), st.text(max_size=5)),
    st.one_of(section, junk),
    max_size=5,
)
overrides = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.builds(
            lambda path, value: f"{'.'.join(path)}={value}",
            st.sampled_from(all_keys()),
            st.one_of(st.text(max_size=8), scalars.map(repr), junk.map(repr)),
        ),
    ),
    max_size=3,
)
light = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(text: str, given_overrides: list[str]) -> None:
    try:
        config = parse_config(text, "c.yaml", given_overrides)
    except ConfigError as error:
        said = str(error)
        for word in JARGON:
            assert word not in said or word in text or word in str(given_overrides), said
        assert said.strip()
    else:
        assert parse_config(dump_config(config), "again") == config


@light
@given(top, overrides)
def test_random_settings(values: dict[Any, Any], given_overrides: list[str]) -> None:
    check(yaml.dump(values, allow_unicode=True), given_overrides)


@light
@given(st.text(alphabet="abz:-[]{}#&*!|>'\"%@`?,~ \n\t\\019._xUu", max_size=40))
def test_random_text(text: str) -> None:
    check(text, [])
    check("name: a", [f"name={text}"])


@light
@given(st.binary(max_size=60))
def test_random_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "c.yaml"
        path.write_bytes(content)
        try:
            load_config(path)
        except ConfigError as error:
            assert str(error)


@light
@given(
    st.builds(
        lambda name, prompts, source, rate: {
            "name": name,
            "evaluate": {"prompts": prompts},
            "data": {"source": source},
            "train": {"learning_rate": rate},
        },
        st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=3),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    )
)
def test_good_settings_survive_the_round_trip(values: dict[str, Any]) -> None:
    config = Config.model_validate(values)
    assert parse_config(dump_config(config), "again") == config


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: a")
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything
        return
    try:
        load_config(path)
    except ConfigError as error:
        assert "may not be read" in str(error)
    else:
        raise AssertionError("it was read")
