"""A federation between machines: Flower's SuperLink and SuperNodes, started and guarded."""

from fedgaze.federate.deployment.asks import ask_client
from fedgaze.federate.deployment.homes import ClientHome, ServerHome
from fedgaze.federate.deployment.host import control_of, make_certificates, make_invite
from fedgaze.federate.deployment.jobs import Job, Jobs
from fedgaze.federate.deployment.keys import private_file
from fedgaze.federate.deployment.manager import Own
from fedgaze.federate.deployment.processes import owner_of
from fedgaze.federate.deployment.registry import Registry
from fedgaze.federate.deployment.service import (
    Listening,
    client_homes,
    client_state,
    find_client,
    follow,
    join_server,
    manage_client,
    remove_client,
    resubmit,
    settings_for,
    start_client,
    start_server,
    stop_client,
    stop_run,
    stop_server,
    submit,
    trust_code,
    unfinished,
    work_for,
)

__all__ = [
    "ClientHome",
    "Job",
    "Jobs",
    "Listening",
    "Own",
    "Registry",
    "ServerHome",
    "ask_client",
    "client_homes",
    "client_state",
    "control_of",
    "find_client",
    "follow",
    "join_server",
    "make_certificates",
    "make_invite",
    "manage_client",
    "owner_of",
    "private_file",
    "remove_client",
    "resubmit",
    "settings_for",
    "start_client",
    "start_server",
    "stop_client",
    "stop_run",
    "stop_server",
    "submit",
    "trust_code",
    "unfinished",
    "work_for",
]
