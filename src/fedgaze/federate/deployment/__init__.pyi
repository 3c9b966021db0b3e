from .asks import ask_client
from .homes import ClientHome, ServerHome
from .host import control_of, make_certificates, make_invite
from .jobs import Job, Jobs
from .keys import private_file
from .manager import Own
from .processes import owner_of
from .registry import Registry
from .service import (
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
