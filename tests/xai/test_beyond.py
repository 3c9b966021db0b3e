"""Targets beyond classes: segments, boxes, embeddings and numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import auto_layer, boxes, detections, explain, output, segmentation, similarity

MakeCNN = Callable[..., nn.Module]


def truth(
    model: nn.Module, layer: nn.Module, images: Tensor, score: Callable[[Any], Tensor]
) -> Tensor:
    """Grad-CAM (ICCV 2017, Eq. 1-2), not clamped, from an ordinary graph of the whole model."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        kept.append(out)
        return out.clone()

    handle = layer.register_forward_hook(keep)
    outputs = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(score(outputs), kept[-1])
    return torch.einsum("nk,nkhw->nhw", gradient.mean((2, 3)), kept[-1].detach())


# --- Segmentation -------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Logits of each place at half the size."""

    def __init__(self, categories: int = 4) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 6, 3, 1, 1))
        self.head = nn.Conv2d(6, categories, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.backbone(x))}


def segmenter(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == "segformer":
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        config = SegformerConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=16,
            num_labels=5,
            num_attention_heads=[1, 2, 4, 8],
        )
        return SegformerForSemanticSegmentation(config).eval()
    from torchvision.models import resnet, segmentation
    from torchvision.models._utils import IntermediateLayerGetter

    if name == "lraspp":
        return segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=5).eval()
    # As torchvision builds them, on the smallest ResNet with as many channels.
    body = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[0, 1, 1])
    backbone = IntermediateLayerGetter(body, {"layer4": "out"})
    if name == "deeplab":
        head = segmentation.deeplabv3.DeepLabHead(2048, 5)
        return segmentation.DeepLabV3(backbone, head).eval()
    return segmentation.FCN(backbone, segmentation.fcn.FCNHead(2048, 5)).eval()


def logits_of(outputs: Any) -> Tensor:
    return outputs["out"] if "out" in outputs else outputs["logits"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("deeplab", "backbone.layer4"),
        ("fcn", "backbone.layer4"),
        ("lraspp", "backbone.16"),
        ("segformer", "segformer.stages.3"),
    ],
)
def test_segmentation_models(name: str, layer: str) -> None:
    model = segmenter(name)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(64, 96)
    mask[10:40, 20:50] = 1
    found = explain(model, images, targets=segmentation([1, 3], mask), relu=False)
    assert found.layers == (layer,)
    assert found.targets.tolist() == [1, 3]
    assert found.heatmaps.shape == (2, 64, 96)

    def score(outputs: Any) -> Tensor:
        maps = F.interpolate(logits_of(outputs), (64, 96), mode="bilinear")
        return (maps[0, 1] * mask).sum() + (maps[1, 3] * mask).sum()

    with torch.no_grad():
        torch.testing.assert_close(found.scores.sum(), score(model(images)), rtol=1e-4, atol=1e-3)
    raw = truth(model, model.get_submodule(layer), images, score)
    torch.testing.assert_close(found.raw, raw, rtol=1e-4, atol=1e-5 * float(raw.abs().max()))


def test_without_a_mask_the_pixels_that_the_model_gives_to_the_category() -> None:
    model, images = Segmenter(), torch.rand(3, 3, 12, 16)
    model.head.bias.data.copy_(torch.tensor([0.1, 0.0, 0.05, -9]))
    given = model(images)["out"].argmax(1)
    category = int(given[0, 0, 0])
    found = explain(model, images, targets=segmentation(category), layers="backbone", relu=False)
    assert found.images.tolist() == [n for n in range(3) if (given[n] == category).any()]

    def score(outputs: Any) -> Tensor:
        return (outputs["out"][:, category] * (given == category)).sum()

    raw = truth(model, model.backbone, images, score)
    torch.testing.assert_close(found.raw, raw[found.images])
    assert found.scores.sum().item() == pytest.approx(score(model(images)).item(), rel=1e-5)
    with pytest.raises(FedgazeError, match="no pixel of any image is given to category 3"):
        explain(model, images, targets=segmentation(3), layers="backbone")


def test_segments_are_explained_as_pytorch_grad_cam_does() -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    class Tensors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Segmenter()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)["out"]

    model, images = Tensors().eval(), torch.rand(2, 3, 12, 16)
    masks = (torch.rand(2, 6, 8) > 0.5).float()
    targets = [SemanticSegmentationTarget(k, masks[n].numpy()) for n, k in enumerate((2, 0))]
    with GradCAM(model=model, target_layers=[model.inner.backbone]) as cam:
        cam(input_tensor=images.clone(), targets=targets)
        held = cam.activations_and_grads
        arrays = held.activations[0].detach().numpy(), held.gradients[0].detach().numpy()
        theirs = cam.get_cam_image(images, model.inner.backbone, targets, *arrays, False)
    ours = explain(
        model, images, targets=segmentation([2, 0], masks), layers="inner.backbone", relu=False
    )
    np.testing.assert_allclose(ours.raw.numpy(), theirs, rtol=1e-4, atol=1e-6)


def test_one_channel_says_yes_or_no() -> None:
    model, images = Segmenter(1), torch.rand(2, 3, 12, 16)
    mask = torch.ones(6, 8)
    yes, no = (
        explain(model, images, targets=segmentation(k, mask), layers="backbone", relu=False)
        for k in (1, 0)
    )
    torch.testing.assert_close(yes.raw, -no.raw)
    torch.testing.assert_close(yes.scores, model(images)["out"].sum((1, 2, 3)))


def test_volumes_are_segmented_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 1))
    images = torch.rand(2, 1, 4, 6, 8)
    mask = torch.zeros(2, 4, 6, 8)
    mask[:, 1:3] = 1
    found = explain(model, images, targets=segmentation(1, mask), layers="1", relu=False)
    assert found.heatmaps.shape == (2, 4, 6, 8)
    torch.testing.assert_close(found.scores, (model(images)[:, 1] * mask).sum((1, 2, 3)))


def test_runs_explain_segments_as_well() -> None:
    # Occlusion of windows, worked by hand: the score's fall where a window is grey.
    model, images = Segmenter(), torch.rand(2, 3, 8, 8)
    mask = torch.zeros(4, 4)
    mask[0] = 1
    found = explain(model, images, "occlusion", segmentation(2, mask), window=4, stride=4)
    for top in (0, 4):
        for left in (0, 4):
            covered = images.clone()
            covered[:, :, top : top + 4, left : left + 4] = 0
            clean, now = ((model(x)["out"][:, 2] * mask).sum((1, 2)) for x in (images, covered))
            place = found.raw[:, top // 4 if found.raw.shape[1] == 2 else top][
                :, left // 4 if found.raw.shape[2] == 2 else left
            ]
            torch.testing.assert_close(place, clean - now, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segmentation(1, torch.zeros(12, 16)), "mask 0 is empty"),
        (lambda: segmentation(1, torch.ones(3, 12, 16)), "there are 3 masks for 2 images"),
        (lambda: segmentation(1, torch.ones(5)), r"the mask has the shape \(5,\)"),
        (lambda: segmentation(9, torch.ones(12, 16)), "there is no class 9"),
        (lambda: segmentation([1, 2, 3]), "3 targets for 2 images"),
        (lambda: segmentation([[1, 2]]), r"categories have the shape \(1, 2\)"),
        (lambda: segmentation(1, torch.ones(2, 4, 12, 16)), r"masks have the shape"),
    ],
)
def test_wrong_segments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(Segmenter(), torch.rand(2, 3, 12, 16), targets=make(), layers="backbone")


def test_a_classifier_segments_nothing(make_cnn: MakeCNN) -> None:
    with pytest.raises(FedgazeError, match=r"logits of shape \(2, 5\) .* for a segmentation"):
        explain(make_cnn(), torch.rand(2, 3, 8, 8), targets=segmentation(1), layers="bn2")


# --- Detection ----------------------------------------------------------------------------------


class Detector(nn.Module):
    """Boxes whose corners and scores depend on the image, smoothly; their number does not."""

    def __init__(self, boxes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(6, 3 * boxes)
        self.corners = torch.tensor([[1.0, 1, 6, 6], [5, 2, 11, 9], [0, 0, 16, 12]])[:boxes]

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        parts = self.head(self.backbone(x).mean((2, 3))).unflatten(1, (-1, 3))
        labels = torch.tensor([1, 2, 1])[: parts.shape[1]]
        return [
            {
                "boxes": self.corners + 0.5 * torch.cat([each[:, :2], -each[:, :2]], 1),
                "labels": labels,
                "scores": each[:, 2].sigmoid(),
            }
            for each in parts
        ]


def iou(a: Any, b: Any) -> Any:
    """Intersection over union of two boxes, written out."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0 * a[0]
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def box_score(found: dict[str, Tensor], reference: list[float], label: int) -> Tensor:
    """The docstring's formula in a loop: the best of IoU times score among those of the label."""
    best = found["scores"].sum() * 0
    for box, each, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
        if int(each) == label:
            value = iou(box, reference) * score
            best = max(best, value)
    return best


REFERENCES = [[[0.0, 0.0, 5.0, 7.0], [6.0, 3.0, 12.0, 9.0]], [[2.0, 1.0, 6.0, 6.0]] * 2]
LABELS = [[1, 2], [1, 1]]


def test_boxes_are_scored_by_overlap_and_label() -> None:
    model, images = Detector(), torch.rand(2, 3, 12, 16)
    found = explain(model, images, targets=boxes(REFERENCES, LABELS), layers="backbone", relu=False)
    assert found.targets.tolist() == [1, 2, 1, 1]
    for row in range(4):
        n, s = divmod(row, 2)

        def score(outputs: Any, n: int = n, s: int = s) -> Tensor:
            return box_score(outputs[n], REFERENCES[n][s], LABELS[n][s])

        torch.testing.assert_close(found.scores[row], score(model(images)))
        raw = truth(model, model.backbone, images, score)
        assert raw[n].abs().max() > 0
        torch.testing.assert_close(found.raw[row], raw[n])


def test_several_boxes_an_image_may_differ_in_number() -> None:
    model, images = Detector(), torch.rand(2, 3, 12, 16)
    references = [torch.tensor(REFERENCES[0]), torch.tensor(REFERENCES[1][:1])]
    labels = [torch.tensor([1, 2]), torch.tensor([1])]
    found = explain(model, images, targets=boxes(references, labels), layers="backbone")
    assert found.images.tolist() == [0, 0, 1]
    all_of_them = explain(model, images, targets=boxes(REFERENCES, LABELS), layers="backbone")
    torch.testing.assert_close(found.raw, all_of_them.raw[:3])


def test_a_detector_explains_what_it_finds() -> None:
    model, images = Detector(), torch.rand(2, 3, 12, 16)
    with torch.no_grad():
        outputs = model(images)
    threshold = float(torch.stack([each["scores"] for each in outputs]).flatten().sort().values[2])
    found = explain(model, images, targets=detections(threshold), layers="backbone", relu=False)
    rows = [
        (n, int(k))
        for n, each in enumerate(outputs)
        for k in each["scores"].argsort(descending=True)
        if each["scores"][k] > threshold
    ]
    assert len(rows) == 3
    assert found.images.tolist() == [n for n, _ in rows]
    assert found.targets.tolist() == [int(outputs[n]["labels"][k]) for n, k in rows]
    # Of its own box the overlap is 1 and has no slope, so the gradient is the score's, if it wins.
    torch.testing.assert_close(
        found.scores, torch.stack([outputs[n]["scores"][k] for n, k in rows])
    )
    with pytest.raises(FedgazeError, match=r"nothing is detected in any image .* above 0\.99"):
        explain(model, images, targets=detections(0.99), layers="backbone")


def test_mirrored_boxes_are_looked_for_in_mirrored_images() -> None:
    class Sees(nn.Module):
        """One box around the brightest column; its score is the brightness there."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(1, 1, 1, bias=False)
            self.backbone.weight.data.fill_(1)

        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            brightness, columns = self.backbone(x).mean((1, 2)).max(1)
            return [
                {
                    "boxes": torch.tensor([[c, 0.0, c + 1, 4.0]]),
                    "labels": torch.tensor([1]),
                    "scores": b[None],
                }
                for b, c in zip(brightness, columns.tolist(), strict=True)
            ]

    images = torch.full((1, 1, 4, 6), 0.1)
    images[..., 1] = 1
    target = boxes([1, 0, 2, 4], 1)
    plain = explain(Sees(), images, targets=target, layers="backbone")
    smooth = explain(Sees(), images, targets=target, layers="backbone", smoothing="augment")
    # The place is found again in every version, so the mean over 0.9, 1, 1.1 is the map itself.
    torch.testing.assert_close(smooth.raw, plain.raw)
    assert plain.raw[0].argmax() % 6 == 1


def torchvision_detector(name: str) -> nn.Module:
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(11)
    size = {"num_classes": 4, "min_size": 96, "max_size": 128}
    if name == "retinanet":
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18",
            weights=None,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        return RetinaNet(backbone, score_thresh=0.0, detections_per_img=5, **size).eval()
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    few = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    return FasterRCNN(backbone, box_score_thresh=0.0, **few, **size).eval()


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_torchvisions_detectors(name: str) -> None:
    model = torchvision_detector(name)
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    assert auto_layer(model, images) == "backbone.body.layer4"
    with torch.no_grad():
        outputs = model(images)
    wanted = [
        (each["boxes"][0] + torch.tensor([-3.0, 2.0, 4.0, 5.0]), each["labels"][0])
        for each in outputs
    ]
    target = boxes(
        torch.stack([box for box, _ in wanted])[:, None],
        torch.stack([label for _, label in wanted])[:, None],
    )
    found = explain(model, images, targets=target, relu=False)
    assert found.layers == ("backbone.body.layer4",)

    def score(outputs: Any) -> Tensor:
        return sum(
            box_score(each, wanted[n][0].tolist(), int(wanted[n][1]))
            for n, each in enumerate(outputs)
        )

    raw = truth(model, model.backbone.body.layer4, images, score)
    assert raw.abs().amax((1, 2)).min() > 0
    torch.testing.assert_close(found.raw, raw, rtol=1e-3, atol=1e-4 * float(raw.abs().max()))
    # All of them, of which each image has its own number.
    scores = torch.cat([each["scores"] for each in outputs])
    several = explain(model, images, targets=detections(float(scores.min()) - 1e-6))
    assert len(several) == len(scores)


def test_pytorch_grad_cam_adds_where_this_multiplies() -> None:
    """Its box score is IoU + score of the best overlap above 0.5; ours their product."""
    from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget

    model, images = Detector(), torch.rand(1, 3, 12, 16)
    with torch.no_grad():
        outputs = model(images)
    box, label = outputs[0]["boxes"][0], int(outputs[0]["labels"][0])
    theirs = FasterRCNNBoxScoreTarget([label], box[None].numpy())(outputs[0])
    settled = boxes(box, label).settle(outputs, torch.arange(1))
    ours = settled.score(outputs, torch.arange(1))
    score = outputs[0]["scores"][0]
    assert float(theirs) == pytest.approx(1 + float(score), rel=1e-5)
    assert float(ours) == pytest.approx(float(score), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: boxes([4, 4, 2, 2], 1), r"boxes are \[\[4, 4, 2, 2\]\]; allowed is"),
        (lambda: boxes([1, 2, 3], 1), "allowed is"),
        (lambda: boxes("box", 1), "boxes are box with labels 1"),
        (lambda: boxes([0, 0, 4, 4], 1.5), "one whole number as a label"),
        (lambda: boxes([0, 0, 4, 4], -1), r"labels are \[-1\]"),
        (lambda: boxes([[0, 0, 4, 4]] * 2, [1, 2, 3]), "with labels"),
        (lambda: boxes([[[0, 0, 4, 4]]] * 3, 1), "boxes of 3 images for 2 images"),
        (lambda: boxes([], 1), "boxes are"),
        (lambda: detections(1), "threshold is 1; allowed is 0 and more, below 1"),
        (lambda: detections(-0.1), r"threshold is -0\.1"),
    ],
)
def test_wrong_boxes(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(Detector(), torch.rand(2, 3, 12, 16), targets=make(), layers="backbone")


def test_a_classifier_detects_nothing(make_cnn: MakeCNN) -> None:
    for target in (detections(), boxes([0, 0, 4, 4], 1)):
        with pytest.raises(FedgazeError, match="the model returned Tensor; allowed is a list with"):
            explain(make_cnn(), torch.rand(2, 3, 8, 8), targets=target, layers="bn2")


# --- Embeddings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["cosine", "dot"])
@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_similarity(make_cnn: MakeCNN, measure: Any, shape: tuple[int, ...]) -> None:
    model, images = make_cnn(), torch.rand(3, 3, 8, 8)
    reference = torch.randn(shape, generator=torch.Generator().manual_seed(4))

    def score(outputs: Tensor) -> Tensor:
        product = (outputs * reference).sum(1)
        lengths = outputs.square().sum(1).sqrt() * reference.square().sum(-1).sqrt()
        return product / lengths if measure == "cosine" else product

    target = similarity(reference, measure=measure)
    found = explain(model, images, targets=target, layers="bn2", relu=False)
    torch.testing.assert_close(found.scores, score(model(images)))
    torch.testing.assert_close(
        found.raw, truth(model, model.bn2, images, lambda outputs: score(outputs).sum())
    )
    assert found.targets is None
    parts = explain(model, images, targets=target, layers="bn2", relu=False, batch_size=2)
    torch.testing.assert_close(parts.raw, found.raw)


def test_an_image_is_like_itself_and_its_similarity_has_no_slope(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    found = explain(model, images, targets=similarity(model(images)), layers="bn2", relu=False)
    torch.testing.assert_close(found.scores, torch.ones(2))
    assert found.raw.abs().max() < 1e-5


def test_embeddings_are_found_under_their_usual_names_or_by_a_function(make_cnn: MakeCNN) -> None:
    class Tower(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.inner, self.name = make_cnn(), name

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {self.name: self.inner(x)}

    images, reference = torch.rand(2, 3, 8, 8), torch.arange(5.0)
    plain = explain(make_cnn(), images, targets=similarity(reference), layers="bn2").raw
    for name, of in [
        ("image_embeds", None),
        ("pooler_output", None),
        ("mine", lambda outputs: outputs["mine"]),
    ]:
        found = explain(Tower(name), images, targets=similarity(reference, of), layers="inner.bn2")
        torch.testing.assert_close(found.raw, plain)
    with pytest.raises(FedgazeError, match="returned dict without logits"):
        explain(Tower("mine"), images, targets=similarity(reference), layers="inner.bn2")


def test_clip_is_asked_by_a_text() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=6,
    )
    model, images = CLIPVisionModelWithProjection(config).eval(), torch.rand(2, 3, 32, 32)
    found = explain(model, images, targets=similarity(torch.arange(6.0)), relu=False)
    embeddings = model(images).image_embeds
    expected = F.cosine_similarity(embeddings, torch.arange(6.0)[None])
    torch.testing.assert_close(found.scores, expected)
    assert found.raw.shape == (2, 4, 4)
    assert found.raw.abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: similarity(torch.zeros(5)), "a reference is zero"),
        (lambda: similarity(torch.ones(2, 1, 5)), r"the reference has the shape \(2, 1, 5\)"),
        (lambda: similarity(torch.ones(0)), r"the reference has the shape \(0,\)"),
        (lambda: similarity(torch.ones(3, 5)), "there are 3 references for 2 images"),
        (lambda: similarity(torch.ones(4)), "the reference has 4 numbers, .* have 5"),
        (lambda: similarity(torch.ones(5), measure="cosin"), "did you mean 'cosine'"),
        (lambda: similarity(torch.ones(5), lambda o: o[:, 0]), r"the embeddings are \(2,\) for 2"),
        (lambda: similarity(torch.ones(5), lambda _: "x"), "the embeddings are str"),
    ],
)
def test_wrong_references(make_cnn: MakeCNN, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(make_cnn(), torch.rand(2, 3, 8, 8), targets=make(), layers="bn2")


# --- Numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_regression_is_explained_as_it_is(make_cnn: MakeCNN, squeeze: bool) -> None:
    inner, images = make_cnn(classes=1), torch.rand(3, 3, 8, 8)
    model = nn.Sequential(inner, nn.Flatten(0)) if squeeze else inner
    layer = "0.bn2" if squeeze else "bn2"
    inner.fc.bias.data -= inner(images).mean()
    found = explain(model.eval(), images, targets=output(), layers=layer, relu=False)
    torch.testing.assert_close(found.scores, inner(images)[:, 0])
    assert found.scores.min() < 0 < found.scores.max()
    raw = truth(inner, inner.bn2, images, lambda outputs: outputs.sum())
    torch.testing.assert_close(found.raw, raw)
    assert found.targets is None
    assert found.logits.shape == (3, 1)


def test_several_outputs(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    found = explain(model, images, targets=output([4, 1]), layers="bn2")
    torch.testing.assert_close(
        found.raw, explain(model, images, targets=[[4, 1]] * 2, layers="bn2").raw
    )
    for target, message in [
        (lambda: output(5), "there is no output 5; the model has 0 to 4"),
        (lambda: output(-1), "there is no output -1"),
        (lambda: output("x"), "targets are 'x'"),
    ]:
        with pytest.raises(FedgazeError, match=message):
            explain(model, images, targets=target(), layers="bn2")
    with pytest.raises(FedgazeError, match=r"returned \(2, 4, 6, 8\) for 2 images; allowed is"):
        explain(Segmenter(), torch.rand(2, 3, 12, 16), targets=output(), layers="backbone")
