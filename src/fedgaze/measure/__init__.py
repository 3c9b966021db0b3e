"""Is this heatmap any good? One file an axis, one function a metric; all batched on the device.

    with open_runner(model, images, targets) as runner:      # of fedgaze.xai
        deletion(runner, explanation.heatmaps)               # (N,)

A metric that is not defined for an image (a zero map, an empty mask) is NaN for that image, so
that whoever averages has to say over how many: see `summarise`.
"""

from fedgaze.measure.agreement import mass_overlap, pearson, spearman, ssim, top_k_overlap
from fedgaze.measure.attacks import agreement, attacked, corrupted
from fedgaze.measure.baselines import centre, edges, noise
from fedgaze.measure.complexity import effective_complexity, entropy, gini, total_variation
from fedgaze.measure.composite import Explain, adcc, arcc, coherency, mean_heat
from fedgaze.measure.effects import (
    faithfulness_correlation,
    faithfulness_estimate,
    infidelity,
    sensitivity_n,
)
from fedgaze.measure.evaluation import (
    Batch,
    Change,
    Changed,
    Heatmaps,
    Maker,
    Value,
    evaluate,
    maker_of,
)
from fedgaze.measure.faithfulness import (
    average_drop,
    causal_drop,
    comprehensiveness,
    deletion,
    fill,
    increase_in_confidence,
    insertion,
    monotonicity,
    pixel_flipping,
    region_drop,
    strongest,
    sufficiency,
)
from fedgaze.measure.imputation import road, road_lerf, road_morf
from fedgaze.measure.information import aic, sic
from fedgaze.measure.localisation import (
    attribution_localisation,
    border_mass,
    box_iou,
    iou,
    mass_on,
    pointing_game,
    relevance_rank_accuracy,
    top_k_intersection,
)
from fedgaze.measure.metrics import find_metric, list_metrics
from fedgaze.measure.randomisation import (
    ExplainModel,
    parameter_randomisation,
    random_logit,
    randomisation_curve,
    randomised,
)
from fedgaze.measure.registry import Metric
from fedgaze.measure.robustness import (
    Around,
    average_sensitivity,
    local_lipschitz,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)
from fedgaze.measure.separation import neighbours_hit, project, silhouettes
from fedgaze.measure.statistics import Summary, summarise
from fedgaze.measure.table import Cell, Column, Table, columns_of

__all__ = [
    "Around",
    "Batch",
    "Cell",
    "Change",
    "Changed",
    "Column",
    "Explain",
    "ExplainModel",
    "Heatmaps",
    "Maker",
    "Metric",
    "Summary",
    "Table",
    "Value",
    "adcc",
    "agreement",
    "aic",
    "arcc",
    "attacked",
    "attribution_localisation",
    "average_drop",
    "average_sensitivity",
    "border_mass",
    "box_iou",
    "causal_drop",
    "centre",
    "coherency",
    "columns_of",
    "comprehensiveness",
    "corrupted",
    "deletion",
    "edges",
    "effective_complexity",
    "entropy",
    "evaluate",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "fill",
    "find_metric",
    "gini",
    "increase_in_confidence",
    "infidelity",
    "insertion",
    "iou",
    "list_metrics",
    "local_lipschitz",
    "maker_of",
    "mass_on",
    "mass_overlap",
    "max_sensitivity",
    "mean_heat",
    "monotonicity",
    "neighbours_hit",
    "noise",
    "parameter_randomisation",
    "pearson",
    "pixel_flipping",
    "pointing_game",
    "project",
    "random_logit",
    "randomisation_curve",
    "randomised",
    "region_drop",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
    "relevance_rank_accuracy",
    "road",
    "road_lerf",
    "road_morf",
    "sensitivity_n",
    "sic",
    "silhouettes",
    "spearman",
    "ssim",
    "strongest",
    "sufficiency",
    "summarise",
    "top_k_intersection",
    "top_k_overlap",
    "total_variation",
]
