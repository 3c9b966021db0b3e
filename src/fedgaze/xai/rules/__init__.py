"""Other ways back: contexts in which models run as always, and gradients go by other rules."""

from fedgaze.xai.rules.composites import COMPOSITES, Bound
from fedgaze.xai.rules.rectify import deconvnet, guided
from fedgaze.xai.rules.relevance import lrp_rules

__all__ = ["COMPOSITES", "Bound", "deconvnet", "guided", "lrp_rules"]
