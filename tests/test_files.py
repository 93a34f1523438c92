"""Folders that appear whole or not at all."""

import pytest

from dreampose.files import new_folder


def test_replaces_only_when_the_block_ends_well(tmp_path):
    target = tmp_path / "deep" / "folder"
    with new_folder(target) as part:
        (part / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(IsADirectoryError), new_folder(target) as part:
        part.write_text("this fails half-way")
    assert [path.name for path in target.iterdir()] == ["a"]
    with new_folder(target) as part:
        (part / "c").write_text("3")
    assert [path.name for path in target.iterdir()] == ["c"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
