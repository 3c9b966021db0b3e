"""Boxes as Pascal VOC and COCO write them."""

import json
from pathlib import Path

import pytest

from fedgaze.data import Box, read_boxes
from fedgaze.errors import FedgazeError

VOC = """<annotation><filename>a.jpg</filename>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>
</annotation>"""
COCO = {
    "images": [{"id": 7, "file_name": "val/a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 1, "bbox": [0, 2, 10, 6], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 99, 99], "iscrowd": 1},
    ],
}


def test_voc_counts_pixels_from_one_and_the_last_ones_within(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(VOC)
    assert read_boxes("voc", tmp_path) == {
        "a.jpg": [Box("cat", 0, 2, 10, 8), Box("dog", 4, 4, 5, 5)]
    }


def test_coco_has_widths_and_leaves_crowds_out(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(COCO))
    assert read_boxes("coco", file) == {"val/a.jpg": [Box("cat", 0, 2, 10, 8)]}


def test_real_ones(real_data: Path) -> None:
    kangaroos = read_boxes("voc", real_data / "boxes" / "kangaroo" / "annots")
    assert kangaroos["00001.jpg"][0] == Box("kangaroo", 232, 88, 386, 262)
    assert len(kangaroos) == len(list((real_data / "boxes" / "kangaroo" / "images").iterdir()))
    coco = read_boxes("coco", real_data / "boxes" / "coco" / "instances.json")
    assert "zebra" in {each.label for each in coco["000000000034.jpg"]}


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("vox", "", "format 'vox'; allowed are voc, coco"),
        ("coco", "{", "is not JSON"),
        ("coco", '{"images": []}', "is not a file of COCO: annotations: Field required"),
        ("coco", json.dumps(COCO | {"categories": []}), "annotation of image 7 and category 1"),
        ("coco", json.dumps(COCO | {"annotations": []}), "has no box in it"),
        ("voc", VOC.replace("<xmin>1</xmin>", ""), "is not a file of Pascal VOC: a bndbox has no"),
        ("voc", "<annotation>", "is not a file of Pascal VOC: no element found"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, form: str, text: str, message: str) -> None:
    file = tmp_path / "a.xml"
    file.write_text(text)
    with pytest.raises(FedgazeError, match=message):
        read_boxes(form, tmp_path if form == "voc" else file)


def test_a_file_that_is_no_folder_and_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="is no folder"):
        read_boxes("voc", tmp_path / "none")
    with pytest.raises(FedgazeError, match="cannot be read"):
        read_boxes("coco", tmp_path / "none.json")


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.xml").write_text(VOC.replace("cat", folder))
    found = read_boxes("voc", tmp_path)
    assert {name: boxes[0].label for name, boxes in found.items()} == {
        "one/a.jpg": "one",
        "two/a.jpg": "two",
    }
