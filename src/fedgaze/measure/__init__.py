"""Is this heatmap any good? One file an axis, one function a metric; all batched on the device.

A metric that is not defined for an image (a zero map, an empty mask) is NaN for that image, so
that whoever averages has to say over how many.
"""

from fedgaze.measure.agreement import mass_overlap, spearman
from fedgaze.measure.complexity import entropy
from fedgaze.measure.faithfulness import causal_drop, fill, region_drop, strongest
from fedgaze.measure.localisation import border_mass, mass_on

__all__ = [
    "border_mass",
    "causal_drop",
    "entropy",
    "fill",
    "mass_on",
    "mass_overlap",
    "region_drop",
    "spearman",
    "strongest",
]
