"""Get images, and split them over clients. Images are float32 ``(N, C, H, W)`` in [0, 1]."""

from fedgaze.data.boxes import Box, read_boxes
from fedgaze.data.dataset import Dataset, Images, StackedImages, boxes_of
from fedgaze.data.folder import load_folder, read_folder
from fedgaze.data.hub import HUB
from fedgaze.data.images import find_images, fit_picture, match_files, read_image
from fedgaze.data.mark import PlantedImages, mark_mask, stamp
from fedgaze.data.scenes import Grids, Scenes, make_grids, make_scenes, scatter_digits
from fedgaze.data.sources import data_sets, load_dataset, load_digits
from fedgaze.data.split import hold_back, partition, probe_indices

__all__ = [
    "HUB",
    "Box",
    "Dataset",
    "Grids",
    "Images",
    "PlantedImages",
    "Scenes",
    "StackedImages",
    "boxes_of",
    "data_sets",
    "find_images",
    "fit_picture",
    "hold_back",
    "load_dataset",
    "load_digits",
    "load_folder",
    "make_grids",
    "make_scenes",
    "mark_mask",
    "match_files",
    "partition",
    "probe_indices",
    "read_boxes",
    "read_folder",
    "read_image",
    "scatter_digits",
    "stamp",
]
