"""DICOM files as a viewer shows them: expected pixels are worked by hand from the standard."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgaze.data import find_images, read_image
from fedgaze.errors import FedgazeError


def write(path: Path, pixels: Any, **fields: Any) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    colour = "PlanarConfiguration" in fields
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)


def grey(path: Path) -> Any:
    return np.asarray(read_image(path))[..., 0]


def test_twelve_bits_in_sixteen_are_not_black(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", np.array([[0, 1000], [2000, 4000]], dtype=np.uint16))
    # Without a window the values are stretched: v / 4000 * 255.
    assert grey(tmp_path / "a.dcm").tolist() == [[0, 64], [128, 255]]


def test_a_window_of_hounsfield_units(tmp_path: Path) -> None:
    # Stored v stands for v - 1024. The window 40 ± 200 in the standard's LINEAR function:
    # ((x - 39.5) / 399 + 0.5) * 255, cut off at both ends (PS3.3, C.11.2.1.2.1).
    stored = np.array([[0, 1024], [1064, 4000]], dtype=np.int16)
    write(
        tmp_path / "ct.dcm",
        stored,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 300],
        WindowWidth=[400, 1500],
    )
    expected = [[0, round(((0 - 39.5) / 399 + 0.5) * 255)], [round((0.5 / 399 + 0.5) * 255), 255]]
    assert grey(tmp_path / "ct.dcm").tolist() == expected


def test_monochrome1_is_bright_where_values_are_low(tmp_path: Path) -> None:
    pixels = np.array([[0, 255]], dtype=np.uint8)
    write(tmp_path / "x.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    assert grey(tmp_path / "x.dcm").tolist() == [[255, 0]]


def test_colour_frames_and_files_without_a_suffix(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    write(
        tmp_path / "IM0001",
        pixels,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
    )
    assert np.array_equal(np.asarray(read_image(tmp_path / "IM0001")), pixels)
    frames = np.stack([np.full((2, 2), value, dtype=np.uint8) for value in (0, 100, 200)])
    frames[:, 0, 0] = 0
    write(tmp_path / "cine.dcm", frames, NumberOfFrames=3)
    assert grey(tmp_path / "cine.dcm").tolist() == [[0, 255], [255, 255]]


def test_constant_images_are_black_and_damaged_ones_are_named(tmp_path: Path) -> None:
    write(tmp_path / "flat.dcm", np.full((2, 2), 7, dtype=np.uint16))
    assert not grey(tmp_path / "flat.dcm").any()
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish")
    with pytest.raises(FedgazeError, match=r"broken\.dcm is not a DICOM image that can be read"):
        read_image(tmp_path / "broken.dcm")
    Image.new("L", (2, 2)).save(tmp_path / "plain.png")
    names = [path.name for path in find_images(tmp_path)]
    assert names == ["broken.dcm", "flat.dcm", "plain.png"]
