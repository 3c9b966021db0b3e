"""What people look at: overlays of pictures, and the self-contained page of a federated run."""

from fedgaze.report.explained import How, Result, explain_files
from fedgaze.report.federated.build import write_federated_report

__all__ = ["How", "Result", "explain_files", "write_federated_report"]
