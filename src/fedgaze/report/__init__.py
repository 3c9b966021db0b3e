"""What people look at: the self-contained page of a federated run."""

from fedgaze.report.build import write_federated_report

__all__ = ["write_federated_report"]
