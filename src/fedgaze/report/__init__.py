"""What people look at: overlays of pictures, and self-contained pages."""

from fedgaze.report.card.build import Card, Contents, model_card
from fedgaze.report.comparison.grid import Asked, Row, Subject, compare, targets_of
from fedgaze.report.comparison.page import Comparison, write_comparison
from fedgaze.report.embedding.features import Embedding, FolderPictures, StoredPictures, embed
from fedgaze.report.embedding.page import write_embedding
from fedgaze.report.evaluation.boxes import read_box_classes
from fedgaze.report.evaluation.files import Evaluation, Judge, open_evaluation
from fedgaze.report.evaluation.findings import judged
from fedgaze.report.evaluation.page import write_evaluation
from fedgaze.report.explained import How, Result, explain_files
from fedgaze.report.explanations import write_explanations
from fedgaze.report.federated.build import write_federated_report
from fedgaze.report.federated.gallery import first_overlays
from fedgaze.report.federated.record import Record, read_record
from fedgaze.report.lab.page import write_lab_report

__all__ = [
    "Asked",
    "Card",
    "Comparison",
    "Contents",
    "Embedding",
    "Evaluation",
    "FolderPictures",
    "How",
    "Judge",
    "Record",
    "Result",
    "Row",
    "StoredPictures",
    "Subject",
    "compare",
    "embed",
    "explain_files",
    "first_overlays",
    "judged",
    "model_card",
    "open_evaluation",
    "read_box_classes",
    "read_record",
    "targets_of",
    "write_comparison",
    "write_embedding",
    "write_evaluation",
    "write_explanations",
    "write_federated_report",
    "write_lab_report",
]
