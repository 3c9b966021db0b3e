"""Whether a task's gate can do what the task asks of it."""

from fedgaze.config import Task
from fedgaze.errors import FedgazeError
from fedgaze.federate.gate.registry import find_measures

__all__ = ["check_gate"]


def check_gate(task: Task) -> None:
    """Find what a gate does not go with.

    Raises:
        FedgazeError: An unknown measure, or a combination in which it could do nothing, or harm.
    """
    find_measures(task.gate.measures)
    if task.server.strategy.short.startswith("secagg"):
        raise FedgazeError(
            f"server.strategy={task.server.strategy.target}: with secure aggregation no single "
            "update can be seen, and the gate sees each one before the merge; leave it out"
        )
    if task.gate.policy != "report" and task.server.privacy is not None:
        raise FedgazeError(
            f"gate.policy={task.gate.policy} and server.privacy do not go together: what is merged "
            "of one client would hang on the images of the others, which no noise covers; set "
            "gate.policy=report"
        )
