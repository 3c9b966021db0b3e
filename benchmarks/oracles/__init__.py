"""What each method of fedgaze is held against; nothing here imports fedgaze."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from oracles import attention, inputs, layer, libraries, runs
from oracles.cases import Array, Case

__all__ = ["EQUATIONS", "ORACLES", "Case", "Oracle"]

LAYERS = ("ResNet-18", "ViT", "SqueezeNet 1.1", "MobileNetV2", "ResNet-20", "ViT-tiny")
CONVOLUTIONS = ("ResNet-18", "SqueezeNet 1.1", "MobileNetV2", "ResNet-20")
HEADS = ("ResNet-18", "MobileNetV2", "ResNet-20")
# For methods that run a model hundreds of times.
FEW = ("ResNet-18, 64 px", "SqueezeNet 1.1, 96 px", "MobileNetV2, 96 px", "ResNet-20")
TOKENS = ("ViT", "ViT-tiny")
RECTIFIED = ("ResNet-18", "SqueezeNet 1.1", "ResNet-20")
LOOP = "float64 loop"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Oracle:
    """A map of a method, made by somebody else.

    Attributes:
        source: Who: a library, or a loop written from the paper.
        maps: Signed raw maps ``(N, h, w)``, or attributions ``(N, 3, H, W)``.
        on: The cases that it is asked about.
        options: What `fedgaze.xai.explain` is told for the same.
        tolerance: How far the maps may be apart.
        any_sign: Whether it leaves the sign of a map to chance.
        sorted: Whether it tells the values in their order, and not where they are.
        differs: Why it is no measure: what it computes that is not the paper's.
    """

    source: str
    maps: Callable[[Case], Array]
    on: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    any_sign: bool = False
    sorted: bool = False
    differs: str = ""


def loop(maps: Callable[..., Array], on: tuple[str, ...], **options: Any) -> Oracle:
    """A loop; options are told to both sides, by the names that fedgaze has for them."""
    return Oracle(LOOP, partial(maps, **options), on, options)


def grad_cam_peer(name: str, on: tuple[str, ...] = LAYERS, **more: Any) -> Oracle:
    return Oracle("pytorch-grad-cam", libraries.pytorch_grad_cam(name), on, **more)


def torchcam_peer(name: str, on: tuple[str, ...] = LAYERS, **more: Any) -> Oracle:
    return Oracle("torchcam", libraries.torchcam(name), on, **more)


def captum_peer(name: str, on: tuple[str, ...] = CONVOLUTIONS, **more: Any) -> Oracle:
    return Oracle("captum", libraries.captum_input(name, **more), on)


ORACLES: dict[str, tuple[Oracle, ...]] = {
    "gradcam": (
        loop(layer.grad_cam, LAYERS),
        Oracle("captum", libraries.captum_layer, CONVOLUTIONS),
        grad_cam_peer("GradCAM"),
        torchcam_peer("GradCAM"),
    ),
    "gradcam++": (
        loop(layer.grad_cam_plus_plus, LAYERS),
        grad_cam_peer("GradCAMPlusPlus", differs="adds 1e-6 to the denominator, beside g²"),
        torchcam_peer("GradCAMpp", differs="has g² for alpha: the division goes into a copy"),
    ),
    "xgradcam": (
        loop(layer.x_grad_cam, LAYERS),
        grad_cam_peer("XGradCAM", CONVOLUTIONS),
        torchcam_peer("XGradCAM", CONVOLUTIONS),
    ),
    "hirescam": (loop(layer.hires_cam, LAYERS), grad_cam_peer("HiResCAM")),
    "layercam": (
        loop(layer.layer_cam, LAYERS),
        grad_cam_peer("LayerCAM"),
        torchcam_peer("LayerCAM"),
    ),
    "gradcam_elementwise": (loop(layer.elementwise, LAYERS), grad_cam_peer("GradCAMElementWise")),
    "eigencam": (
        loop(layer.eigen_cam, LAYERS),
        Oracle(
            "pytorch-grad-cam, centred",
            libraries.pytorch_grad_cam("EigenCAM"),
            LAYERS,
            {"centred": True},
            any_sign=True,
        ),
        grad_cam_peer(
            "EigenCAM",
            any_sign=True,
            differs="subtracts each channel's mean first, as `centred=True` does here",
        ),
    ),
    "eigengradcam": (
        loop(layer.eigen_grad_cam, LAYERS),
        grad_cam_peer("EigenGradCAM", any_sign=True),
    ),
    "kpcacam": (loop(layer.kpca_cam, LAYERS), grad_cam_peer("KPCA_CAM", any_sign=True)),
    "cam": (
        loop(layer.cam, HEADS),
        Oracle("torchcam", libraries.torchcam_cam, HEADS),
    ),
    "finercam": (
        loop(layer.finer_cam, LAYERS),
        torchcam_peer("FinerCAM"),
        Oracle(
            "pytorch-grad-cam",
            libraries.pytorch_grad_cam_finer,
            LAYERS,
            differs="alpha is 1, and classes are weighted by their probabilities",
        ),
    ),
    "shapleycam": (
        loop(layer.shapley_cam, LAYERS),
        Oracle(
            "pytorch-grad-cam, told the score",
            libraries.pytorch_grad_cam(
                "ShapleyCAM", lambda row, label: row[label] + row.log_softmax(0)[label]
            ),
            CONVOLUTIONS,  # it fails on tokens
        ),
        grad_cam_peer(
            "ShapleyCAM",
            CONVOLUTIONS,
            differs="explains the logit, which often has no curvature, unless told",
        ),
    ),
    "smooth_gradcam++": (loop(layer.smooth_grad_cam_plus_plus, (*FEW, "ViT"), samples=4),),
    "random": (
        Oracle(
            "quantiles",
            runs.quantiles,
            ("ResNet-18, first layer", "SqueezeNet 1.1, first layer"),
            tolerance=0.03,  # the Kolmogorov-Smirnov distance of 4,608 numbers, for 1 in 2,000
            sorted=True,
        ),
    ),
    "scorecam": (
        loop(runs.score_cam, FEW),
        grad_cam_peer(
            "ScoreCAM", FEW, differs="enlarges with aligned corners; flat channels take part"
        ),
        torchcam_peer(
            "ScoreCAM",
            FEW,
            differs="scales channels before it enlarges them; flat channels take part",
        ),
    ),
    "sscam": (loop(runs.ss_cam, FEW, samples=2),),
    "iscam": (
        loop(runs.is_cam, FEW, steps=4),
        Oracle(
            "torchcam",
            libraries.torchcam("ISCAM", num_samples=4),
            FEW,
            {"steps": 4},
            differs="goes one step further; scales before it enlarges; flat channels take part",
        ),
    ),
    "ablationcam": (
        loop(runs.ablation_cam, FEW),
        grad_cam_peer("AblationCAM", FEW),
    ),
    "groupcam": (loop(runs.group_cam, FEW),),
    "rise": (loop(runs.rise, FEW, masks=40),),
    "occlusion": (Oracle("captum", libraries.captum_occlusion, FEW),),
    "saliency": (captum_peer("Saliency", LAYERS, abs=False),),
    "input_x_gradient": (captum_peer("InputXGradient", LAYERS),),
    "integrated_gradients": (captum_peer("IntegratedGradients", FEW),),
    "smoothgrad": (loop(inputs.smooth_grad, LAYERS, samples=4),),
    "vargrad": (loop(inputs.var_grad, LAYERS, samples=4),),
    "fullgrad": (
        loop(inputs.full_grad, FEW),
        Oracle(
            "pytorch-grad-cam",
            libraries.pytorch_grad_cam_full,
            FEW,
            differs="scales by the maximum plus 1e-7, and the input's channels together",
        ),
    ),
    "guided_backprop": (captum_peer("GuidedBackprop", RECTIFIED),),
    "deconvnet": (captum_peer("Deconvolution", RECTIFIED),),
    "guided_gradcam": (Oracle("captum", libraries.captum_guided_grad_cam, RECTIFIED),),
    "lrp": (Oracle("zennit", libraries.zennit_lrp, ("ResNet-18", "SqueezeNet 1.1")),),
    "attention_rollout": (loop(attention.attention_rollout, TOKENS),),
    "attention_flow": (loop(attention.attention_flow, ("ViT", "ViT-tiny, 64 px")),),
    "raw_attention": (loop(attention.raw_attention, TOKENS),),
    "gradient_rollout": (loop(attention.gradient_rollout, TOKENS),),
}

EQUATIONS: dict[str, str] = {
    "gradcam": "relu(Σₖ mean(gₖ) Aₖ)",
    "gradcam++": "relu(Σₖ wₖ Aₖ), wₖ = Σ relu(gₖ) / (2 + gₖ ΣAₖ)",
    "xgradcam": "relu(Σₖ wₖ Aₖ), wₖ = Σ gₖAₖ / ΣAₖ",
    "hirescam": "relu(Σₖ gₖ Aₖ)",
    "layercam": "relu(Σₖ relu(gₖ) Aₖ)",
    "gradcam_elementwise": "Σₖ relu(gₖ Aₖ)",
    "eigencam": "A V₁ for A = U Σ Vᵀ",
    "eigengradcam": "the same of g A, centred",
    "kpcacam": "√λ₁ a₁ for K a = λ a, K a centred kernel",
    "cam": "Σₖ w꜀ₖ Aₖ, w of the classifier",
    "finercam": "Grad-CAM of y꜀ − 0.6 mean(y of 3 similar classes)",
    "shapleycam": "relu(Σₖ mean(g − HA / 2)ₖ Aₖ) of y꜀ + log p꜀",
    "smooth_gradcam++": "relu(Σₖ wₖ Aₖ), wₖ = Σ D₁ relu(D₁) / (2 D₂ + ΣAₖ D₃)",
    "random": "uniform in [0, 1)",
    "scorecam": "relu(Σₖ softmaxₖ(f(x Hₖ) − f(0)) Aₖ)",
    "sscam": "as Score-CAM, of mean f(x (Hₖ + noise))",
    "iscam": "as Score-CAM, of mean f(Σ j/N x Hₖ)",
    "ablationcam": "relu(Σₖ (y − yₖ) / y Aₖ), yₖ without channel k",
    "groupcam": "relu(Σ (f(x M + b (1 − M)) − f(b)) M), M of groups",
    "rise": "Σᵢ f(x Mᵢ) Mᵢ / (p N)",
    "occlusion": "mean of f(x) − f(covered) over windows",
    "saliency": "∂y/∂x",
    "input_x_gradient": "x ∂y/∂x",
    "integrated_gradients": "(x − x′) ∫ ∂y/∂x (x′ + a (x − x′)) da",
    "smoothgrad": "mean ∂y/∂x (x + noise)",
    "vargrad": "variance of ∂y/∂x (x + noise)",
    "fullgrad": "ψ(x ∂y/∂x) + Σ ψ(b ∂y/∂z)",
    "guided_backprop": "∂y/∂x, ReLUs let back what is positive",
    "deconvnet": "∂y/∂x, ReLUs rectify what comes back",
    "guided_gradcam": "Grad-CAM, enlarged, × guided backpropagation",
    "lrp": "z⁺ in convolutions, epsilon in dense layers",
    "attention_rollout": "∏ (W̄ + I) / 2, the class's row",
    "attention_flow": "maximum flow through (W̄ + I) / 2",
    "raw_attention": "W̄ of the last block, the class's row",
    "gradient_rollout": "R ← R + mean relu(∇W ∘ W) R",
}
