"""The model that this task trains: named in conf/config.yaml as `models.Net`."""

from torch import Tensor, nn


class Net(nn.Module):
    """A small convolutional network for grey pictures of 24 × 24 and more.

    Args:
        num_classes: How many classes it tells apart.
        width: Channels of the first layer; the following have twice and four times as many.
    """

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (N, 1, H, W) into scores (N, num_classes)."""
        scores: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return scores
