"""What holds a training up: the figures of a profile, found in its events, and the verdict on them."""

from tutti.observe.profile.figures import Figures, read_profile
from tutti.observe.profile.page import print_profile, profile_json, profile_page
from tutti.observe.profile.verdict import KINDS, Cause, Verdict, judge

__all__ = [
    "KINDS",
    "Cause",
    "Figures",
    "Verdict",
    "judge",
    "print_profile",
    "profile_json",
    "profile_page",
    "read_profile",
]
