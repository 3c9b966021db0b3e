"""The parts of Flower that it does not call public, in one place. Tried with 1.41."""

from fedgaze.federate.deployment.flower.bundles import build_bundle, unpack_bundle
from fedgaze.federate.deployment.flower.control import Control, Node
from fedgaze.federate.deployment.flower.processes import ENVIRONMENT, exit_with_parent
from fedgaze.federate.deployment.flower.superlink import (
    Flower,
    make_superlink,
    node_headers,
    node_of_headers,
)
from fedgaze.federate.deployment.flower.supernode import Pace, run_supernode
from fedgaze.federate.deployment.flower.tasks import NodeTasks, Work

__all__ = [
    "ENVIRONMENT",
    "Control",
    "Flower",
    "Node",
    "NodeTasks",
    "Pace",
    "Work",
    "build_bundle",
    "exit_with_parent",
    "make_superlink",
    "node_headers",
    "node_of_headers",
    "run_supernode",
    "unpack_bundle",
]
