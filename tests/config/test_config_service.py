"""Settings of a service go through the loader of every Tutti file: all problems at once, each with its place."""

from pathlib import Path

import pytest

from tutti.config import InvalidConfig, ServiceConfig, load_service, service_page
from tutti.config.describe import all_keys
from tutti.core.errors import ConfigError


def test_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("keys: keys.json\nlimits: {texts: 3}\nfilter:\n  inputs: true\n")
    found = load_service(file, ["limits.new_tokens=50", "limits.texts=2"])
    assert (found.keys, found.limits.texts, found.limits.new_tokens, found.filter.inputs) == (
        "keys.json",
        2,
        50,
        True,
    )
    assert load_service(None) == ServiceConfig()


def test_every_problem_is_said_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("limits:\n  body_byte: 3\n  texts: many\naudit: {log_prompt: yes}\ntrain: {}\n")
    with pytest.raises(InvalidConfig) as invalid:
        load_service(file, ["redact.input=true", "filter.model=runs/tone"])
    said = {(one.origin.line, one.path): str(one) for one in invalid.value.problems}
    assert "did you mean 'body_bytes'" in said[2, "limits.body_byte"]
    assert "a whole number above 0" in said[3, "limits.texts"]
    assert "did you mean 'log_prompts'" in said[4, "audit.log_prompt"]
    assert "unknown key" in said[5, "train"] and "keys, limits, redact" in said[5, "train"]
    assert "did you mean 'redact.inputs'" in said[1, "redact.input"]
    assert "filter.labels" in said[1, "filter"]


def test_what_is_no_file_of_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_service(tmp_path / "nothing.yaml")
    (tmp_path / "empty.yaml").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        load_service(tmp_path / "empty.yaml")


def test_the_page_has_a_row_for_every_key() -> None:
    page = service_page()
    for path in all_keys(ServiceConfig):
        assert any(line.startswith((f"| `{path[-1]}`", f"| [`{path[-1]}`]")) for line in page.splitlines()), (
            path
        )
