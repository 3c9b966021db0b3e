"""Clients that misbehave: the laboratory in which a defence is proven.

``behaviour`` of a task names a kind, the clients and from which round on. What they do comes from
the task's seed, the client's number and, where it changes, the round. They misbehave in what they
train on and what they send; their validation images stay as they are, so they report good numbers.
"""

from fedgaze.federate.behaviour.check import check_behaviour
from fedgaze.federate.behaviour.kinds import Turn, behave, divided, trigger_of
from fedgaze.federate.behaviour.success import attack_success
from fedgaze.federate.behaviour.triggers import Trigger

__all__ = [
    "Trigger",
    "Turn",
    "attack_success",
    "behave",
    "check_behaviour",
    "divided",
    "trigger_of",
]
