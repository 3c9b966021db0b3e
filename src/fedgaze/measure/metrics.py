"""The metrics of fedgaze by name."""

from math import inf
from typing import Final

from fedgaze.errors import FedgazeError, nearest
from fedgaze.measure import (
    complexity,
    composite,
    effects,
    faithfulness,
    imputation,
    information,
    localisation,
    randomisation,
    robustness,
)
from fedgaze.measure.registry import Metric

__all__ = ["find_metric", "list_metrics"]

_FAITH: Final = "faithfulness"
_PLACE: Final = "localisation"
_ROBUST: Final = "robustness"
_RANDOM: Final = "randomisation"
_COMPLEX: Final = "complexity"

# fmt: off
_METRICS = (
    Metric("deletion", faithfulness.deletion, _FAITH, "lower", 0, 1,
           "51 passes", "Petsiuk et al., BMVC 2018"),
    Metric("insertion", faithfulness.insertion, _FAITH, "higher", 0, 1,
           "51 passes", "Petsiuk et al., BMVC 2018"),
    Metric("pixel_flipping", faithfulness.pixel_flipping, _FAITH, "higher", -1, 1,
           "51 passes", "Bach et al., PLOS ONE 2015; Samek et al., TNNLS 2017, Eq. 12"),
    Metric("road", imputation.road, _FAITH, "higher", -1, 1,
           "10 passes", "Rong et al., ICML 2022"),
    Metric("road_morf", imputation.road_morf, _FAITH, "higher", -1, 1,
           "5 passes", "Rong et al., ICML 2022"),
    Metric("road_lerf", imputation.road_lerf, _FAITH, "lower", -1, 1,
           "5 passes", "Rong et al., ICML 2022"),
    Metric("comprehensiveness", faithfulness.comprehensiveness, _FAITH, "higher", -1, 1,
           "6 passes", "DeYoung et al., ACL 2020"),
    Metric("sufficiency", faithfulness.sufficiency, _FAITH, "lower", -1, 1,
           "6 passes", "DeYoung et al., ACL 2020"),
    Metric("average_drop", faithfulness.average_drop, _FAITH, "lower", 0, 1,
           "2 passes", "Chattopadhay et al., WACV 2018"),
    Metric("increase_in_confidence", faithfulness.increase_in_confidence, _FAITH, "higher", 0, 1,
           "2 passes", "Chattopadhay et al., WACV 2018"),
    Metric("coherency", composite.coherency, _FAITH, "higher", 0, 1,
           "1 explanation", "Poppi et al., CVPR workshops 2021"),
    Metric("adcc", composite.adcc, _FAITH, "higher", 0, 1,
           "2 passes, 1 explanation", "Poppi et al., CVPR workshops 2021"),
    Metric("arcc", composite.arcc, _FAITH, "higher", 0, 1,
           "10 passes, 1 explanation", "Domeniconi et al., arXiv 2605.14641, 2026"),
    Metric("infidelity", effects.infidelity, _FAITH, "lower", 0, 1,
           "51 passes", "Yeh et al., NeurIPS 2019, Definition 2.1"),
    Metric("faithfulness_correlation", effects.faithfulness_correlation, _FAITH, "higher", -1, 1,
           "51 passes", "Bhatt et al., IJCAI 2020"),
    Metric("faithfulness_estimate", effects.faithfulness_estimate, _FAITH, "higher", -1, 1,
           "51 passes", "Alvarez-Melis and Jaakkola, NeurIPS 2018"),
    Metric("sensitivity_n", effects.sensitivity_n, _FAITH, "higher", -1, 1,
           "81 passes", "Ancona et al., ICLR 2018"),
    Metric("monotonicity", faithfulness.monotonicity, _FAITH, "higher", 0, 1,
           "51 passes", "Arya et al., arXiv 1909.03012, 2019"),
    Metric("sic", information.sic, _FAITH, "higher", 0, 1,
           "15 passes", "Kapishnikov et al., ICCV 2019"),
    Metric("aic", information.aic, _FAITH, "higher", 0, 1,
           "15 passes", "Kapishnikov et al., ICCV 2019"),
    Metric("pointing_game", localisation.pointing_game, _PLACE, "higher", 0, 1,
           "none", "Zhang et al., ECCV 2016"),
    Metric("energy_pointing_game", localisation.mass_on, _PLACE, "higher", 0, 1,
           "none", "Wang et al., CVPR workshops 2020; Arras et al., 2022"),
    Metric("relevance_rank_accuracy", localisation.relevance_rank_accuracy, _PLACE, "higher", 0, 1,
           "none", "Arras et al., Information Fusion 2022"),
    Metric("top_k_intersection", localisation.top_k_intersection, _PLACE, "higher", 0, 1,
           "none", "Theiner et al., WACV 2022"),
    Metric("attribution_localisation", localisation.attribution_localisation, _PLACE, "higher",
           0, 1, "none", "Kohlbrenner et al., IJCNN 2020"),
    Metric("iou", localisation.iou, _PLACE, "higher", 0, 1, "none", "intersection over union"),
    Metric("box_iou", localisation.box_iou, _PLACE, "higher", 0, 1,
           "none", "Zhou et al., CVPR 2016"),
    Metric("max_sensitivity", robustness.max_sensitivity, _ROBUST, "lower", 0, inf,
           "10 explanations", "Yeh et al., NeurIPS 2019"),
    Metric("average_sensitivity", robustness.average_sensitivity, _ROBUST, "lower", 0, inf,
           "10 explanations", "Bhatt et al., IJCAI 2020"),
    Metric("local_lipschitz", robustness.local_lipschitz, _ROBUST, "lower", 0, inf,
           "10 explanations", "Alvarez-Melis and Jaakkola, ICML workshop 2018"),
    Metric("relative_input_stability", robustness.relative_input_stability, _ROBUST, "lower",
           0, inf, "10 explanations and passes", "Agarwal et al., arXiv 2203.06877, 2022"),
    Metric("relative_output_stability", robustness.relative_output_stability, _ROBUST, "lower",
           0, inf, "10 explanations and passes", "Agarwal et al., arXiv 2203.06877, 2022"),
    Metric("relative_representation_stability", robustness.relative_representation_stability,
           _ROBUST, "lower", 0, inf, "10 explanations, 20 passes",
           "Agarwal et al., arXiv 2203.06877, 2022"),
    Metric("parameter_randomisation", randomisation.parameter_randomisation, _RANDOM, "lower",
           -1, 1, "an explanation a layer", "Adebayo et al., NeurIPS 2018"),
    Metric("random_logit", randomisation.random_logit, _RANDOM, "lower", -1, 1,
           "1 explanation", "Sixt et al., ICML 2020"),
    Metric("entropy", complexity.entropy, _COMPLEX, "lower", 0, 1,
           "none", "Bhatt et al., IJCAI 2020"),
    Metric("gini", complexity.gini, _COMPLEX, "higher", 0, 1,
           "none", "Chalasani et al., ICML 2020"),
    Metric("effective_complexity", complexity.effective_complexity, _COMPLEX, "lower", 0, 1,
           "none", "after Nguyen and Martinez, arXiv 2007.07584, 2020"),
    Metric("total_variation", complexity.total_variation, _COMPLEX, "lower", 0, inf,
           "none", "Rudin et al., Physica D 1992"),
)
# fmt: on

_BY_NAME = {each.name: each for each in _METRICS}


def list_metrics() -> list[Metric]:
    """All metrics, by axis."""
    return list(_METRICS)


def find_metric(name: str) -> Metric:
    """Find a metric by its name.

    Raises:
        FedgazeError: There is none.

    >>> find_metric("deletion").better
    'lower'
    """
    if name not in _BY_NAME:
        raise FedgazeError(
            f"there is no metric {name!r}{nearest(name, _BY_NAME)}; there are {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[name]
