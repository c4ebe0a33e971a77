"""What is wrong with a section `alerts` is said in words, before a run or a service begins."""

import pytest

from tutti.config import InvalidConfig, load_config, load_service


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alerts.webhook=hooks.slack.com/x"], "webhook must begin with https://, http:// or $"),
        (["alerts.email_to=[a@b.c]"], "email_to needs smtp"),
        (["alerts.smtp=mail.b.c"], "smtp needs email_to"),
        (["alerts.smtp_user=me"], "smtp_user and smtp_password belong together"),
        (["alerts.smtp_password=s3cret"], "a variable of the environment"),
        (["alerts.command='\"open'"], "command cannot be read"),
        (["alerts.command=' '"], "command is empty"),
        (["alerts.web_hook=x"], "did you mean 'alerts.webhook'"),
        (["alerts.repeat_minutes=0"], "a whole number above 0"),
    ],
)
def test_what_cannot_be(words: list[str], said: str) -> None:
    for load in (load_config, load_service):
        with pytest.raises(InvalidConfig) as invalid:
            load(None, words)
        assert said in str(invalid.value)


def test_rules_of_the_other_are_unknown() -> None:
    for load, key in ((load_config, "queue"), (load_service, "straggler")):
        with pytest.raises(InvalidConfig, match="unknown key"):
            load(None, [f"alerts.{key}=3"])
