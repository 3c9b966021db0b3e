"""Read where objects are: Pascal VOC's XML and COCO's JSON."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ValidationError

from fedgaze.errors import FedgazeError, nearest

__all__ = ["Box", "read_boxes"]

FORMATS = ("voc", "coco")


@dataclass(frozen=True)
class Box:
    """Where an object is.

    Attributes:
        label: What it is called.
        left: In pixels of the picture's file, from its left edge.
        top: From its upper edge.
        right: Exclusive.
        bottom: Exclusive.
    """

    label: str
    left: float
    top: float
    right: float
    bottom: float


def read_boxes(form: str, path: Path) -> Mapping[str, Sequence[Box]]:
    """Read the boxes of pictures.

    Args:
        form: ``"voc"``: an XML file a picture, in a folder, with pixels counted from 1 and the last
            ones within. ``"coco"``: one JSON file; crowds are left out.
        path: The folder or the file.

    Returns:
        Boxes by the picture's file name, with the folders that are written before it (see
        `match_files`); for voc those below `path` that the XML file lies in.

    Raises:
        FedgazeError: It cannot be read, or has no box.
    """
    if form not in FORMATS:
        raise FedgazeError(
            f"boxes are of the format {form!r}; allowed are {', '.join(FORMATS)}"
            f"{nearest(form, FORMATS)}"
        )
    found = _voc(path) if form == "voc" else _coco(path)
    if not found:
        raise FedgazeError(f"{path} has no box in it")
    return found


def _voc(path: Path) -> dict[str, list[Box]]:
    if not path.is_dir():
        raise FedgazeError(f"{path} is no folder; boxes of the format voc lie in one, as XML files")
    found: dict[str, list[Box]] = {}
    for file in sorted(path.rglob("*.xml")):
        try:
            root = ET.parse(file).getroot()  # noqa: S314 - expat refuses what would grow without end
            name = root.findtext("filename") or f"{file.stem}.jpg"
            below = file.parent.relative_to(path) / PureWindowsPath(name).name
            found[below.as_posix()] = [_voc_box(each) for each in root.iter("object")]
        except (ET.ParseError, TypeError, ValueError) as error:
            raise FedgazeError(f"{file} is not a file of Pascal VOC: {error}") from error
    return {name: boxes for name, boxes in found.items() if boxes}


def _voc_box(element: ET.Element) -> Box:
    ends = [element.findtext(f"bndbox/{end}") for end in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = (float(end) if end else float("nan") for end in ends)
    if not (left <= right and top <= bottom):
        raise ValueError("a bndbox has no xmin, ymin, xmax and ymax in this order")
    return Box(element.findtext("name") or "", left - 1, top - 1, right, bottom)


class _Image(BaseModel):
    id: int
    file_name: str


class _Annotation(BaseModel):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(BaseModel):
    id: int
    name: str


class _Instances(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def _coco(path: Path) -> dict[str, list[Box]]:
    try:
        held = _Instances.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FedgazeError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FedgazeError(f"{path} is not a file of COCO: {where}: {first['msg']}") from error
    except ValueError as error:
        raise FedgazeError(f"{path} is not JSON: {error}") from error
    files = {each.id: each.file_name for each in held.images}
    names = {each.id: each.name for each in held.categories}
    found: dict[str, list[Box]] = defaultdict(list)
    for each in held.annotations:
        if each.image_id not in files or each.category_id not in names:
            raise FedgazeError(
                f"{path} has an annotation of image {each.image_id} and category "
                f"{each.category_id}, of which one is not in it"
            )
        if not each.iscrowd:
            left, top, width, height = each.bbox
            box = Box(names[each.category_id], left, top, left + width, top + height)
            found[files[each.image_id]].append(box)
    return dict(found)
