"""Fast: a copy of a model that says the same for less than the model's own forward costs."""

from fedgaze.xai.fast.prepare import Prepared, prepare

__all__ = ["Prepared", "prepare"]
