"""Which files of a folder are read, in which order."""

import os
from pathlib import Path

import pytest

from loractl.errors import InputError
from loractl.prepare.reading import members


def test_members_are_all_there_in_natural_order(tmp_path: Path) -> None:
    names = ["10.jpg", "2.JPG", "b/1.png", "a.txt", ".DS_Store", "._2.JPG", "__MACOSX/x.png", ".git/y.png", "Thumbs.db"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = members(tmp_path)
    assert sorted(member.name for member in found) == sorted(names)
    assert [member.name for member in found if member.ignored is None] == ["2.JPG", "10.jpg", "b/1.png"]
    reasons = {member.name: member.ignored for member in found}
    assert reasons["a.txt"] == "a sidecar (.txt)"
    assert reasons["._2.JPG"] == reasons["__MACOSX/x.png"] == "macOS keeps its own data here"
    assert (reasons[".DS_Store"], reasons[".git/y.png"]) == ("a system's file", "hidden")
    assert all(member.path == tmp_path / member.name for member in found)


def test_links_and_pipes_are_not_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a.png").touch()
    (root / "file.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    found = {member.name: member.ignored for member in members(root)}
    assert found.pop("pipe.png") == "not a regular file"
    assert found == dict.fromkeys(["file.png", "folder", "loop"], "a link: put the file itself here")


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    (member,) = members(tmp_path)
    assert member.ignored == "its name is not UTF-8: rename it"
    member.name.encode()


def test_a_single_file_and_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert [member.name for member in members(tmp_path / "a.jpg")] == ["a.jpg"]
    with pytest.raises(InputError, match="there is no folder"):
        members(tmp_path / "nowhere")
