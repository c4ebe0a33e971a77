"""A parameter server: one process that holds weights, optimizer and ledger, and the replicas' side of it.

register  who may train on what, and when: the accounts
centre    weights and optimizer: what becomes of a gradient
weights   the same on its way to replicas
host      the server's loop: hears its clients, answers
memory    what survives its death
link      a rank's connection
policy    a replica's side
wire      parameters as packets
messages  what is said
"""

from tutti.sync.server.centre import Centre, MakeStepper, Spec
from tutti.sync.server.host import SERVER_RANK, Host
from tutti.sync.server.link import Link, ServerAddress, listen
from tutti.sync.server.memory import ServerMemory
from tutti.sync.server.policy import Kept, ParameterServer
from tutti.sync.server.register import Register
from tutti.sync.server.rules import Rules
from tutti.sync.server.wire import Wire

__all__ = [
    "SERVER_RANK",
    "Centre",
    "Host",
    "Kept",
    "Link",
    "MakeStepper",
    "ParameterServer",
    "Register",
    "Rules",
    "ServerAddress",
    "ServerMemory",
    "Spec",
    "Wire",
    "listen",
]
