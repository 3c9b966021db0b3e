from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgaze.data import find_images, match_files, read_image
from fedgaze.errors import FedgazeError, check_names

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
# What a person sees: red top left, green top right, blue bottom left, grey bottom right.
SEEN = np.array([[RED, GREEN], [BLUE, GREY]], dtype=np.uint8)

# How the sensor's rows and columns lie for each value of EXIF's Orientation, written from the
# standard's table ("0th row is …, 0th column is …"), as index pairs into what is seen.
STORED = {
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.transpose(1, 0, 2),
    6: SEEN[:, ::-1].transpose(1, 0, 2),
    7: SEEN[::-1, ::-1].transpose(1, 0, 2),
    8: SEEN[::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_exif_orientation_is_followed(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.kron(STORED[orientation], np.ones((16, 16, 1), dtype=np.uint8))
    lossless = (
        {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    )
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif, **lossless)
    read = np.asarray(read_image(tmp_path / f"a.{suffix}"))[8::16, 8::16]
    np.testing.assert_allclose(read.astype(int), SEEN, atol=6 if suffix == "jpg" else 0)


def test_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    expected = [[RED, (255, 255, 255), (127, 127, 127)]]
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), expected)


def test_transparent_palette_and_grey_become_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    expected = [[(255, 255, 255), (40, 50, 60)]]
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "p.png")), expected)
    Image.fromarray(np.array([[[7, 255], [7, 0]]], dtype=np.uint8), "LA").save(tmp_path / "l.png")
    expected = [[(7, 7, 7), (255, 255, 255)]]
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "l.png")), expected)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(read, np.repeat([[[0], [1], [128], [255]]], 3, axis=2))


def test_float_values_up_to_one_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert np.asarray(read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_every_mode_becomes_colour(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.tiff")
    assert np.asarray(read_image(tmp_path / "a.tiff")).min() == 255


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.jpg", "text.png", "empty.png"):
        with pytest.raises(FedgazeError, match=rf"{name} is not a picture that can be read"):
            read_image(tmp_path / name)
    with pytest.raises(FedgazeError, match=r"hole\.jpg is not a file; did you mean 'whole.jpg'"):
        read_image(tmp_path / "hole.jpg")


def test_directory_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/.hidden.jpg", ".thumbs/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == [tmp_path / "a/z.jpg", tmp_path / "b.PNG"]
    with pytest.raises(FedgazeError, match="has no picture"):
        find_images(tmp_path / "folder.png")
    with pytest.raises(FedgazeError, match="is not a directory"):
        find_images(tmp_path / "b.PNG")


@pytest.mark.parametrize(
    ("names", "files", "meant"),
    [
        (["a.jpg"], ["in/a.jpg", "in/b.jpg"], {"in/a.jpg": "a.jpg"}),
        (["train/a.jpg"], ["images/a.jpg"], {"images/a.jpg": "train/a.jpg"}),
        (["x\\a.jpg", "y\\a.jpg"], ["in/y/a.jpg"], {"in/y/a.jpg": "y\\a.jpg"}),
        (["x/a.jpg"], ["in/x/a.jpg", "in/y/a.jpg"], {"in/x/a.jpg": "x/a.jpg"}),
        (["a.jpeg"], ["in/a.jpg"], {}),
    ],
)
def test_a_name_means_the_file_with_most_folders_in_common(
    names: list[str], files: list[str], meant: dict[str, str]
) -> None:
    found = match_files(names, [Path(each) for each in files])
    assert found == {Path(file): name for file, name in meant.items()}


@pytest.mark.parametrize(
    ("names", "files", "message"),
    [
        (["a.jpg"], ["x/a.jpg", "y/a.jpg"], "a.jpg may be x/a.jpg or y/a.jpg"),
        (["x/a.jpg", "y/a.jpg"], ["in/a.jpg"], "in/a.jpg may be x/a.jpg or y/a.jpg"),
    ],
)
def test_a_name_that_may_mean_two_is_refused(
    names: list[str], files: list[str], message: str
) -> None:
    with pytest.raises(FedgazeError, match=message):
        match_files(names, [Path(each) for each in files])


def test_a_name_that_no_record_could_hold_is_refused() -> None:
    check_names([Path("ä \n b.jpg")])
    with pytest.raises(FedgazeError, match=r"the name b'in/\\xff.jpg' is not UTF-8"):
        check_names([Path("in/\udcff.jpg")])
