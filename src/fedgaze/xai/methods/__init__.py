"""The methods, by name."""

from collections.abc import Iterable

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.methods.ablation import ablation_cam
from fedgaze.xai.methods.cam import (
    grad_cam,
    grad_cam_plus_plus,
    grad_cam_plus_plus_weights,
    grad_cam_weights,
    x_grad_cam_weights,
)
from fedgaze.xai.methods.classic import class_activation_map
from fedgaze.xai.methods.eigen import eigen_cam, eigen_grad_cam
from fedgaze.xai.methods.elementwise import (
    elementwise_weights,
    hires_cam_weights,
    layer_cam_weights,
)
from fedgaze.xai.methods.flow import attention_flow
from fedgaze.xai.methods.fullgrad import full_grad
from fedgaze.xai.methods.groupcam import group_cam
from fedgaze.xai.methods.inputs import (
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
    var_grad,
)
from fedgaze.xai.methods.kpca import kpca_cam
from fedgaze.xai.methods.layer_runs import (
    finer,
    random,
    shapley_cam,
    smooth_grad_cam_plus_plus,
)
from fedgaze.xai.methods.occlusion import occlusion
from fedgaze.xai.methods.relevance import (
    deconvnet_maps,
    guided_backprop,
    guided_grad_cam,
    lrp,
)
from fedgaze.xai.methods.rise import rise
from fedgaze.xai.methods.rollout import attention_rollout, gradient_rollout, raw_attention
from fedgaze.xai.methods.scorecam import is_cam, score_cam, ss_cam
from fedgaze.xai.methods.scores import rest_scores
from fedgaze.xai.registry import Method, third_party

__all__ = ["find_method", "grad_cam", "grad_cam_plus_plus", "list_methods"]

_WAY_BACK = "1 forward pass, and back from the score to the layer"
_INPUT = "1 forward pass, and back from the score to the image"
_INPUTS = "1 forward pass, and one with the way back to the image for each {}"
_RERUNS = "1 forward pass, and one for each {}"


def _by_name(methods: Iterable[Method]) -> dict[str, Method]:
    return {method.name: method for method in methods}


_BUILT_IN = _by_name(
    (
        Method(
            "gradcam",
            grad_cam_weights,
            "weights",
            _WAY_BACK,
            "Selvaraju et al., ICCV 2017, Eq. 1-2",
        ),
        Method(
            "gradcam++",
            grad_cam_plus_plus_weights,
            "weights",
            _WAY_BACK,
            "Chattopadhay et al., WACV 2018, Eq. 5, 10, 19",
        ),
        Method("xgradcam", x_grad_cam_weights, "weights", _WAY_BACK, "Fu et al., BMVC 2020"),
        Method("hirescam", hires_cam_weights, "weights", _WAY_BACK, "Draelos and Carin, 2020"),
        Method(
            "layercam",
            layer_cam_weights,
            "weights",
            _WAY_BACK,
            "Jiang et al., TIP 2021",
            fusion="layercam",
        ),
        Method(
            "gradcam_elementwise", elementwise_weights, "weights", _WAY_BACK, "pytorch-grad-cam"
        ),
        Method(
            "eigencam",
            eigen_cam,
            "map",
            "1 forward pass",
            "Muhammad and Yeasin, IJCNN 2020",
            gradients=False,
        ),
        Method("eigengradcam", eigen_grad_cam, "map", _WAY_BACK, "pytorch-grad-cam"),
        Method(
            "kpcacam",
            kpca_cam,
            "map",
            "1 forward pass, and a matrix of positions by positions",
            "Karmani et al., MMSP 2024",
            gradients=False,
        ),
        Method(
            "cam",
            class_activation_map,
            "run",
            "1 forward pass",
            "Zhou et al., CVPR 2016, Eq. 2",
            gradients=False,
            relu=False,
        ),
        Method(
            "finercam",
            grad_cam_weights,
            "weights",
            _WAY_BACK,
            "Zhang et al., CVPR 2025",
            score=finer,
        ),
        Method(
            "shapleycam",
            shapley_cam,
            "run",
            "1 forward pass, and back to the layer and its curvature",
            "Cai, arXiv 2501.06261, 2025",
            score=rest_scores,
            differentiable=False,
        ),
        Method(
            "smooth_gradcam++",
            smooth_grad_cam_plus_plus,
            "run",
            "2 forward passes, and one with the way back for each sample",
            "Omeiza et al., arXiv 1908.01224, 2019",
            differentiable=False,
            many=True,
        ),
        Method(
            "random",
            random,
            "run",
            "1 forward pass",
            "none: a baseline",
            gradients=False,
            relu=False,
            differentiable=False,
        ),
        Method(
            "saliency",
            saliency,
            "run",
            _INPUT,
            "Simonyan et al., ICLR workshop 2014, Eq. 3-4",
            layers=False,
            reduction="max_abs",
        ),
        Method(
            "input_x_gradient",
            input_x_gradient,
            "run",
            _INPUT,
            "Shrikumar et al., arXiv 1605.01713, 2016",
            layers=False,
            relu=False,
        ),
        Method(
            "integrated_gradients",
            integrated_gradients,
            "run",
            _INPUTS.format("step"),
            "Sundararajan et al., ICML 2017, Eq. 1",
            layers=False,
            relu=False,
            many=True,
        ),
        Method(
            "smoothgrad",
            smooth_grad,
            "run",
            _INPUTS.format("sample"),
            "Smilkov et al., ICML workshop 2017, Section 3",
            layers=False,
            reduction="max_abs",
            many=True,
        ),
        Method(
            "vargrad",
            var_grad,
            "run",
            _INPUTS.format("sample"),
            "Adebayo et al., ICLR workshop 2018, Section 2",
            layers=False,
            reduction="max_abs",
            differentiable=False,
            many=True,
        ),
        Method(
            "guided_backprop",
            guided_backprop,
            "run",
            _INPUT,
            "Springenberg et al., ICLR workshop 2015, Section 3.4",
            layers=False,
            reduction="max_abs",
        ),
        Method(
            "deconvnet",
            deconvnet_maps,
            "run",
            _INPUT,
            "Zeiler and Fergus, ECCV 2014, Section 2.1",
            layers=False,
            reduction="max_abs",
        ),
        Method(
            "guided_gradcam",
            guided_grad_cam,
            "run",
            "2 forward passes, and back from the score to the layer and to the image",
            "Selvaraju et al., ICCV 2017, Section 3",
            reduction="max_abs",
        ),
        Method(
            "lrp",
            lrp,
            "run",
            "1 forward pass, and back from the score to the image, most layers twice or more",
            "Bach et al., PLOS ONE 2015, Eq. 58 and 60",
            layers=False,
            relu=False,
            differentiable=False,
        ),
        Method(
            "fullgrad",
            full_grad,
            "run",
            _INPUT,
            "Srinivas and Fleuret, NeurIPS 2019, Section 4",
            layers=False,
            biases=True,
        ),
        Method(
            "scorecam",
            score_cam,
            "run",
            _RERUNS.format("channel"),
            "Wang et al., CVPR workshops 2020, Eq. 4-7, Algorithm 1",
            gradients=False,
            differentiable=False,
            many=True,
        ),
        Method(
            "sscam",
            ss_cam,
            "run",
            _RERUNS.format("channel and sample"),
            "Wang et al., arXiv 2006.14255, 2020",
            gradients=False,
            differentiable=False,
            many=True,
        ),
        Method(
            "iscam",
            is_cam,
            "run",
            _RERUNS.format("channel and step"),
            "Naidu et al., arXiv 2010.03023, 2020",
            gradients=False,
            differentiable=False,
            many=True,
        ),
        Method(
            "ablationcam",
            ablation_cam,
            "run",
            "1 forward pass, and one from the layer on for each channel",
            "Desai and Ramaswamy, WACV 2020, Eq. 3",
            gradients=False,
            differentiable=False,
            many=True,
        ),
        Method(
            "groupcam",
            group_cam,
            "run",
            "1 forward pass, back from the score to the layer, and one for each group",
            "Zhang et al., arXiv 2103.13859, 2021, Eq. 1-8",
            differentiable=False,
            many=True,
        ),
        Method(
            "rise",
            rise,
            "run",
            _RERUNS.format("mask"),
            "Petsiuk et al., BMVC 2018, Eq. 6",
            layers=False,
            gradients=False,
            relu=False,
            differentiable=False,
            many=True,
        ),
        Method(
            "occlusion",
            occlusion,
            "run",
            _RERUNS.format("place of the window"),
            "Zeiler and Fergus, ECCV 2014, Section 4.2",
            layers=False,
            gradients=False,
            relu=False,
            differentiable=False,
            many=True,
        ),
        Method(
            "attention_rollout",
            attention_rollout,
            "attention",
            "1 forward pass",
            "Abnar and Zuidema, ACL 2020, Eq. 1",
            layers=False,
            gradients=False,
        ),
        Method(
            "attention_flow",
            attention_flow,
            "attention",
            "1 forward pass, and a maximum flow on the CPU",
            "Abnar and Zuidema, ACL 2020, Section 3",
            layers=False,
            gradients=False,
            differentiable=False,
        ),
        Method(
            "raw_attention",
            raw_attention,
            "attention",
            "1 forward pass",
            "Abnar and Zuidema, ACL 2020, Section 2",
            layers=False,
            gradients=False,
        ),
        Method(
            "gradient_rollout",
            gradient_rollout,
            "attention",
            "1 forward pass, and back to the first block",
            "Chefer, Gur and Wolf, ICCV 2021, Eq. 5-6",
            layers=False,
        ),
    )
)


def list_methods() -> tuple[Method, ...]:
    """All methods: those of fedgaze, then those of other packages.

    >>> [method.name for method in list_methods()][:1]
    ['gradcam']
    """
    others, _ = third_party(frozenset(_BUILT_IN))
    return (*_BUILT_IN.values(), *others.values())


def find_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        FedgazeError: There is none, or the package that offers it is broken.

    >>> find_method("grad-cam")
    Traceback (most recent call last):
    fedgaze.errors.FedgazeError: there is no method 'grad-cam'; allowed are gradcam, ...
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    others, wrong = third_party(frozenset(_BUILT_IN))
    if name in wrong and name not in others:
        raise FedgazeError(wrong[name])
    methods = {**_BUILT_IN, **others}
    if name not in methods:
        raise FedgazeError(
            f"there is no method {name!r}; allowed are {', '.join(methods)}"
            f"{nearest(str(name), methods)}"
        )
    return methods[name]
