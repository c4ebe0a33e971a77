"""Releases: which versions of a model a service has had, which it serves, and how each came and went.

version.py   one version, as it is written down
content.py   what its model is made of, and whether it is still that
standing.py  from what was done with versions to what is served now
registry.py  the directory: one file for each version, and the history
deploying.py `tutti deploy`: a model is made sure of before it counts
listing.py   `tutti releases`
"""

from tutti.serve.release.listing import listing
from tutti.serve.release.registry import Registry, is_registry
from tutti.serve.release.standing import Deed, State
from tutti.serve.release.version import Version

__all__ = ["Deed", "Registry", "State", "Version", "is_registry", "listing"]
