"""Paths and object stores: files appear as a whole, one of several creates a file, and URLs that cannot be are refused."""

import errno
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from upath import UPath

from shapleycam.bench import places
from shapleycam.bench.places import beside, create, files, locate, remove, write_whole


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder on disk, and one in an object store that lives in memory."""
    return tmp_path if request.param == "disk" else locate(f"memory://{tmp_path.name}")


def test_a_path_is_a_path_and_a_url_lies_in_its_store() -> None:
    assert locate("runs/a") == Path("runs/a")
    assert locate(Path("runs/a")) == Path("runs/a")
    assert locate("file:///runs/a") == locate("local:///runs/a") == Path("/runs/a")
    found = locate("s3://bucket/runs/a")
    assert isinstance(found, UPath)
    assert (found.protocol, found.path, str(found / "b")) == ("s3", "bucket/runs/a", "s3://bucket/runs/a/b")
    assert found.fs.dircache.use_listings_cache is False  # others write there too


def test_the_first_to_create_a_file_is_the_one_that_made_it(folder: Any) -> None:
    assert create(folder / "a" / "b", b"first")
    assert not create(folder / "a" / "b", b"second")
    assert (folder / "a" / "b").read_bytes() == b"first"
    assert list(files(folder)) == [PurePosixPath("a/b")]


def test_a_link_whose_answer_was_lost_on_the_way_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def asked_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", asked_twice)
    assert create(tmp_path / "a", b"x")
    assert not create(tmp_path / "a", b"y")


def test_a_store_that_is_busy_with_the_same_file_has_not_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any = UPath("memory://claims/busy")

    def refusing(code: str) -> None:
        def pipe(*given: Any, **named: Any) -> None:
            cause = Exception("409")
            cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
            raise OSError(errno.EIO, "conflict") from cause

        monkeypatch.setattr(file.fs, "pipe_file", pipe)

    for known in ("ConditionalRequestConflict", "PreconditionFailed", "412"):  # not all stores say which condition
        refusing(known)
        assert not create(file, b"me")
    refusing("AccessDenied")
    with pytest.raises(OSError, match="conflict"):
        create(file, b"me")


def test_without_links_a_file_is_created_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    assert create(tmp_path / "a", b"x")
    assert not create(tmp_path / "a", b"y")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_writing_replaces_and_removing_what_is_not_there_is_no_error(folder: Any) -> None:
    for data in (b"old", b"new"):
        write_whole(folder / "x", data)
    assert (folder / "x").read_bytes() == b"new"
    for _ in range(2):
        remove(folder / "x")
    assert list(files(folder)) == []


def test_paths_in_a_list_are_relative_to_it_or_urls(folder: Any) -> None:
    assert beside(folder / "list.txt", "a/b.png") == folder / "a" / "b.png"
    assert str(beside(folder / "list.txt", "s3://bucket/b.png")) == "s3://bucket/b.png"


def test_machines_that_share_a_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = places.host()
    places.host.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda self, **given: "another-boot")
    try:
        assert places.host() != here
    finally:
        places.host.cache_clear()


@pytest.mark.parametrize(
    ("url", "words"),
    [("gs://bucket/x", r'needs gcsfs: pip install "shapleycam\[gcs\]"'), ("nowhere://x/y", "cannot be reached")],
)
def test_urls_that_nothing_can_reach_are_refused(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=words):
        locate(url)


def test_names_in_a_folder_are_as_last_seen_while_its_store_does_not_answer(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    listed = places.listings(1.0, lambda: now[0])
    write_whole(folder / "x", b"1")
    assert listed(folder) == {"x"}

    def away(*given: Any) -> Any:
        raise ConnectionError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(places, "files", away)
        now[0] = 5.0
        assert listed(folder) == {"x"}
        assert listed(folder / "never seen") == set()
    write_whole(folder / "y", b"1")
    now[0] = 10.0
    assert listed(folder) == {"x", "y"}
