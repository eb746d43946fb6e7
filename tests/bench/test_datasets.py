"""Folders, tars and lists of pictures made up here: their names, their labels, and what is refused."""

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from shapleycam.bench.datasets import checksum, find_pictures
from shapleycam.network.pictures import read_picture


def png(shade: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tree(root: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(shade))
    return root


def found(source: Path, labels: Path | None = None) -> dict[str, int | str | None]:
    return {item.name: item.label for item in find_pictures(source, labels)}


def wrote(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_of_classes_gives_each_picture_its_folder_as_label(tmp_path: Path) -> None:
    source = tree(
        tmp_path, "n02007558/b.png", "n01440764/z.JPG", "n01440764/a.png", "n01440764/.hidden.png", "notes.txt"
    )
    assert list(found(source).items()) == [
        ("n01440764/a.png", "n01440764"), ("n01440764/z.JPG", "n01440764"), ("n02007558/b.png", "n02007558"),
    ]  # fmt: skip


def test_a_flat_folder_has_labels_where_names_hold_identifiers(tmp_path: Path) -> None:
    source = tree(
        tmp_path, "n01440764_tench.JPEG", "ILSVRC2012_val_00000001_n02007558.JPEG", "ILSVRC2012_val_00000002.JPEG"
    )
    assert list(found(source).values()) == ["n02007558", None, "n01440764"]


def test_names_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    first, second = (tree(tmp_path / name, "a/x.png", "b/y.png") for name in ("one", "two/deeper"))
    assert found(first) == found(second)
    assert checksum(find_pictures(first)) == checksum(find_pictures(second))
    (second / "b" / "y.png").rename(second / "b" / "z.png")
    assert checksum(find_pictures(first)) != checksum(find_pictures(second))


def test_pictures_in_a_tar_are_those_of_the_folder_that_it_was_made_of(tmp_path: Path) -> None:
    source = tree(tmp_path / "pictures", "n02007558/b.png", "n01440764/a.png")
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(source, ".")
    packed, plain = find_pictures(tmp_path / "pictures.tar"), find_pictures(source)
    assert packed == plain  # names and labels
    for one, other in zip(packed, plain, strict=True):
        assert np.array_equal(read_picture(one.open()), read_picture(other.open()))


def test_a_list_gives_its_pictures_in_its_order_with_their_labels(tmp_path: Path) -> None:
    tree(tmp_path, "in a folder/c 1.png", "b.png", "a.png", "n01440764/d.png", "e.png")
    source = wrote(
        tmp_path / "list.txt",
        "# mine\n\nin a folder/c 1.png 7\nb.png\tgreat grey owl\na.png\nn01440764/d.png\ne.png 0\n",
    )
    assert list(found(source).items()) == [
        ("in a folder/c 1.png", 7), ("b.png", "great grey owl"), ("a.png", None), ("n01440764/d.png", "n01440764"), ("e.png", 0),
    ]  # fmt: skip
    assert [read_picture(item.open()).getpixel((0, 0))[0] for item in find_pictures(source)] == [0, 1, 2, 3, 4]


def test_a_list_takes_no_label_from_a_folder_that_is_no_identifier(tmp_path: Path) -> None:
    tree(tmp_path, "flat/a.png", "n01440764/b.png")
    source = wrote(tmp_path / "list.txt", "flat/a.png\nn01440764/b.png\n")
    assert found(source) == {"flat/a.png": None, "n01440764/b.png": "n01440764"}


def test_a_csv_list_may_have_a_head_and_quotes(tmp_path: Path) -> None:
    source = wrote(tmp_path / "list.csv", '\ufeffPath,label\n"b, c.png",n02007558\na.png,3\nd.png\n')
    assert list(found(source).items()) == [("b, c.png", "n02007558"), ("a.png", 3), ("d.png", None)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "v_1.JPEG 65\nv_2.JPEG 970\n"),
        ("labels.txt", "v_2\t970\nv_1\t65\n"),
        ("labels.csv", "ImageId,PredictionString\nv_1,65\nv_2,970\n"),
        ("labels.txt", "65\n970\n"),
    ],
)
def test_a_file_of_labels_goes_by_name_with_or_without_ending_or_by_order(tmp_path: Path, name: str, text: str) -> None:
    source = tree(tmp_path / "val", "v_2.JPEG", "v_1.JPEG")
    assert found(source, wrote(tmp_path / name, text)) == {"v_1.JPEG": 65, "v_2.JPEG": 970}


def test_the_boxes_behind_an_identifier_are_no_part_of_it(tmp_path: Path) -> None:
    source = tree(tmp_path / "val", "v_1.JPEG")
    labels = wrote(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString\nv_1,n03995372 85 1 499 272 \n")
    assert found(source, labels) == {"v_1.JPEG": "n03995372"}


def test_labels_that_count_from_1_in_the_order_of_the_challenge_are_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "val", "v_1.JPEG", "v_2.JPEG")
    with pytest.raises(ValueError, match="not the order of the logits"):
        find_pictures(source, wrote(tmp_path / "ILSVRC2012_validation_ground_truth.txt", "490\n1000\n"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.txt", "65\n", "has 1 labels for 2 pictures"),
        ("labels.txt", "other.png 65\nmore.png 1\n", "names none of the 2 pictures, such as v_1.JPEG"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    source = tree(tmp_path / "val", "v_1.JPEG", "v_2.JPEG")
    with pytest.raises(ValueError, match=words):
        find_pictures(source, wrote(tmp_path / name, text))


def test_what_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        find_pictures(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        find_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"lists a\.png a second time"):
        find_pictures(wrote(tmp_path / "list.txt", "a.png\nb.png\na.png\n"))
    (binary := tmp_path / "list.bin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is no text"):
        find_pictures(binary)
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(ValueError, match="compressed"):
        find_pictures(tmp_path / "a.tar.gz")


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="cannot be read as a tar"):
        find_pictures(tmp_path / "a.tar")


def test_links_to_folders_are_searched_unless_they_lead_back(tmp_path: Path) -> None:
    tree(tmp_path / "all", "n01440764/a.png")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "n01440764").symlink_to(tmp_path / "all" / "n01440764")
    (tmp_path / "all" / "n01440764" / "back").symlink_to(tmp_path / "all")
    assert found(tmp_path / "some") == {"n01440764/a.png": "n01440764"}
    assert found(tmp_path / "all") == {"n01440764/a.png": "n01440764"}


def test_what_is_hidden_is_no_picture(tmp_path: Path) -> None:
    assert found(tree(tmp_path, "a.png", ".b.png", ".thumbnails/c.png")) == {"a.png": None}


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "caf\udce9.png")
    with pytest.raises(
        ValueError, match=r"the name of 'caf\\udce9.png' is not UTF-8, so that no table can hold it; rename"
    ):
        find_pictures(tmp_path)


def test_a_csv_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    tree(tmp_path, "a.png", "#1.png")
    for text in ("label,path\n7,a.png\n8,#1.png\n", "# of mine\n,Image,class\n0,a.png,7\n1,#1.png,8\n"):
        assert found(wrote(tmp_path / "list.csv", text)) == {"a.png": 7, "#1.png": 8}


def test_pictures_that_a_file_does_not_name_keep_their_labels(tmp_path: Path) -> None:
    tree(tmp_path / "of", "n01440764/a.png", "n01440764/b.png")
    given = wrote(tmp_path / "labels.csv", "name,label\nb.png,n02123045\n")
    assert list(found(tmp_path / "of", given).values()) == ["n01440764", "n02123045"]


def test_a_picture_in_a_stores_tar_is_fetched_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    far: Any = UPath(f"memory://{tmp_path.name}/some.tar")
    far.write_bytes((tmp_path / "some.tar").read_bytes())
    (item,) = find_pictures(far)
    monkeypatch.setattr(type(far), "open", None)  # opened, it is read by blocks of 50 MiB
    assert item.open() == (tmp_path / "a.png").read_bytes()
