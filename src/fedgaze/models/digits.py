"""The network of the demo: small, and such that Grad-CAM on it tells the truth."""

import torch
from torch import Tensor, nn

__all__ = ["DigitsNet"]


class DigitsNet(nn.Module):
    """Three convolutions, the maximum of each feature map, one linear layer.

    Each part has its reason. Two coordinate channels (CoordConv: Liu et al. 2018,
    arXiv:1807.03247) let a feature say where it is, so that a model *can* fall for a corner. The
    global maximum, unlike the mean, lets a small mark count as much as a whole digit, and unlike a
    flattened head it gives every place of a feature map the same weight, so that Grad-CAM's
    averaged gradients do not cancel. One pooling step keeps maps at half the image's size.

    Args:
        channels: Of the images.
        num_classes: Outputs.
    """

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels + 2, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, channels, H, W)`` in [0, 1]."""
        x = self.pool(self.relu(self.norm1(self.conv1(_with_coordinates(2 * images - 1)))))
        x = self.relu(self.norm2(self.conv2(x)))
        x = self.relu(self.norm3(self.conv3(x)))
        logits: Tensor = self.fc(x.amax((2, 3)))
        return logits


def _with_coordinates(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    rows = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device)
    columns = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device)
    grid = torch.stack(
        [rows[:, None].expand(height, width), columns[None, :].expand(height, width)]
    )
    return torch.cat([images, grid.expand(count, -1, -1, -1)], dim=1)
