"""Files that jobs list and read, here and in a bucket."""

import pytest

from jobs.common import storage

NAMES = ["a.mp4", "Look 12 front.mp4", "50%.mp4", "100%25.mp4", "n#1.mp4", "what?.mp4",
         "x=1&y.mp4", "Größe.mp4", "it's.mp4", "[1].mp4", "a:b.mp4"]  # fmt: skip


@pytest.fixture
def clips(anywhere):
    for name in NAMES:
        storage.write_text(f"{anywhere}/clips [1]/{name}", name)
    return f"{anywhere}/clips [1]"


def test_every_listed_name_can_be_read_back(clips):
    found = storage.find(clips)
    assert [name.removeprefix(f"{clips}/") for name in found] == sorted(NAMES)
    for name in found:
        with storage.local_copy(name) as path:
            assert path.read_text("utf-8") == name.removeprefix(f"{clips}/")


def test_what_exists_is_itself_and_no_pattern(clips):
    assert storage.find(f"{clips}/[1].mp4") == [f"{clips}/[1].mp4"]
    assert storage.find(f"{clips}/what?.mp4") == [f"{clips}/what?.mp4"]
    folder = clips.removesuffix(" [1]")
    assert storage.find(f"{folder}*/a[.:]*4") == [f"{clips}/a.mp4", f"{clips}/a:b.mp4"]
    assert storage.find(f"{clips}/none*") == storage.find(f"{clips} none") == []


def test_percent_encoded_addresses_are_understood(bucket):
    storage.write_text(f"{bucket}/my folder/a b.mp4", "x")
    assert storage.is_folder(f"{bucket}/my%20folder")
    (found,) = storage.find(f"{bucket}/my%20folder")
    assert storage.is_file(f"{bucket}/my%20folder/a%20b.mp4")
    assert storage.read_text(found) == "x"
