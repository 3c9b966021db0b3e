"""What people look at: overlays of pictures, and self-contained pages."""

from fedgaze.report.evaluation.boxes import read_box_classes
from fedgaze.report.evaluation.files import Evaluation, Judge, open_evaluation
from fedgaze.report.evaluation.findings import judged
from fedgaze.report.evaluation.page import write_evaluation
from fedgaze.report.explained import How, Result, explain_files
from fedgaze.report.federated.build import write_federated_report

__all__ = [
    "Evaluation",
    "How",
    "Judge",
    "Result",
    "explain_files",
    "judged",
    "open_evaluation",
    "read_box_classes",
    "write_evaluation",
    "write_federated_report",
]
