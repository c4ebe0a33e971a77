"""Somebody is told when something is wrong with a run or a service: rules, receivers, and who looks."""

from tutti.observe.alerts.findings import Alert, Finding
from tutti.observe.alerts.receivers import Receiver, receivers_of
from tutti.observe.alerts.run_rules import RunRules, judge_run
from tutti.observe.alerts.sender import Sender, send_trial
from tutti.observe.alerts.service_rules import ServiceRules, judge_service
from tutti.observe.alerts.watch import Watch, WatchedRun, WatchedService

__all__ = [
    "Alert",
    "Finding",
    "Receiver",
    "RunRules",
    "Sender",
    "ServiceRules",
    "Watch",
    "WatchedRun",
    "WatchedService",
    "judge_run",
    "judge_service",
    "receivers_of",
    "send_trial",
]
