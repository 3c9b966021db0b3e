"""Local training: what a client does with its own images."""

from fedgaze.train.loop import Score, evaluate, train

__all__ = ["Score", "evaluate", "train"]
