"""Tables in every form that people save them in."""

import io
import unicodedata
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreampose.errors import InputError
from dreampose.io import tables

COLUMNS = {"required": ("item", "photos"), "optional": ("seed",)}
ROWS = [{"item": "Größe", "photos": "a b.png", "seed": "7"}, {"item": "b", "photos": "c;d"}]


def parse(content, **options):
    return tables.parse(content, "t.csv", name="catalog", **(COLUMNS | options))


def excel(rows, sheets=1):
    from openpyxl import Workbook

    book = Workbook()
    for row in rows:
        book.active.append(row)
    for number in range(1, sheets):
        book.create_sheet(f"more {number}")
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def parquet(rows):
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


TEXT = "item,photos,seed\nGröße,a b.png,7\nb,c;d,\n"
FORMS = {
    "plain": TEXT.encode(),
    "byte order mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "Windows lines": TEXT.replace("\n", "\r\n").encode(),
    "semicolons": 'Item;Photos;Seed\nGröße;a b.png;7\nb;"c;d";\n'.encode(),
    "tabs": TEXT.replace(",", "\t").encode("utf-16"),
    "named": '\ufeffsep=;\r\nitem;photos;seed\r\nGröße;a b.png;7\r\nb;"c;d";\r\n'.encode(),
    "empty rows and columns": (
        "\n,,,,\nitem, PHOTOS ,seed,,\nGröße,a b.png,7,,\n,,,,\nb,c;d,,,\n\n".encode()
    ),
    "accents in two parts": unicodedata.normalize("NFD", TEXT).encode(),
    "quotes": '"item","photos","seed"\n"Größe"," a b.png","7"\n"b","c;d",""\n'.encode(),
    "Excel": excel([["Item", "photos", "seed", None], ["Größe", "a b.png", 7.0], [None],
                    ["b", "c;d"]], sheets=3),
    "Parquet": parquet([{"item": "Größe", "photos": ["a b.png"], "seed": 7.0},
                        {"item": "b", "photos": ["c", "d"], "seed": None}]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_same_table_in_every_form(form):
    table = parse(FORMS[form])
    assert table.columns == ("item", "photos", "seed")
    assert [{k: v for k, v in row.cells.items() if v} for row in table.rows] == ROWS
    assert not any(row.error for row in table.rows)


def test_a_row_that_is_wrong_fails_alone():
    lines = ["item,photos,seed", "a,1.png,", "b,2.png", "c,3.png,1,x,y", ",4.png,", "A,5.png,",
             '"d\nd",6.png,', "e,7.png,,,"]  # fmt: skip
    table = parse("\n".join(lines).encode(), unique="item")
    assert [row.line for row in table.rows] == [2, 3, 4, 5, 6, 7, 9]
    errors = {row.line: row.error for row in table.rows if row.error}
    assert errors == {
        4: "line 4: 5 cells where the header has 3; put quotes around a cell with the delimiter "
        "in it",
        5: "line 5: no item",
        6: "line 6: item 'A' is in line 2 already",
    }
    assert table.rows[1].cells == {"item": "b", "photos": "2.png", "seed": ""}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("item,photos\nGr\u00f6,x\n".encode("latin-1"),
         r"not in UTF-8 \(byte 0xF6 in line 2\); save it as CSV UTF-8"),
        (b"", "empty file"),
        (b"a,b\n1,2\n", "must have the columns item, photos, got no item and no photos but a, b"),
        (b"item,photos,ITEM\n1,2,3\n", "each column once"),
        (b"item,photos,\n1,2,\n4,5,6\n", "column without a name .the 3th., filled in line 3"),
        (b'item,photos\n"a,b\n', "no CSV"),
        (b'item,photos\n"a"b,c\n', "no CSV"),
        (b"item,photos\na\0b,c\n", "binary"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "no table .PNG."),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "Excel's old format"),
        (b"PK\x03\x04" + bytes(99), "as an Excel file"),
        (b"PAR1" + bytes(99), "as Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_sentence(content, reason):
    with pytest.raises(InputError, match=reason) as caught:
        parse(content)
    assert str(caught.value).startswith("catalog: ")


def test_excel_without_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"pip install 'dreampose\[excel\]'"):
        parse(FORMS["Excel"])


def test_an_existing_file_is_itself_and_accents_match(tmp_path):
    names = ["IMG_1 [edit].png", "IMG_1 e.png", "what?.png", "a*.png",
             unicodedata.normalize("NFD", "Größe.png"), "50%.png"]  # fmt: skip
    folder = tmp_path / "Look [1]"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    (folder / "sub").mkdir()
    (folder / "sub" / "x.png").touch()

    def found(cell):
        return [path.relative_to(folder).as_posix() for path in tables.match(folder, cell)]

    for name in names[:4]:
        assert found(name) == [name]
    assert found("Größe.png") == found(names[4]) == [names[4]]
    assert found("Gr*e.png") == [names[4]]
    assert found("sub\\x.png") == ["sub/x.png"]
    assert found("IMG_1 [ef].png") == ["IMG_1 e.png"]
    assert found("*.png") == sorted(names)
    assert found("none.png") == found("x" * 5000) == found("a\0b") == []
    assert tables.match("elsewhere", str(folder / "50%.png")) == [folder / "50%.png"]


@pytest.mark.parametrize("form", ["plain", "semicolons", "UTF-16", "Excel", "Parquet"])
def test_damaged_files_give_rows_or_an_input_error(form):
    """Bounded fuzzing: nothing but InputError leaves the reader."""
    rng = np.random.default_rng(11)
    outcomes = {"rows": 0, "refused": 0}
    for _ in range(150):
        damaged = bytearray(FORMS[form])
        for place in rng.integers(0, len(damaged), rng.integers(1, 12)):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(0, len(damaged))]
        try:
            table = parse(bytes(damaged))
        except InputError:
            outcomes["refused"] += 1
        else:
            outcomes["rows"] += 1
            assert all(set(row.cells) == set(table.columns) for row in table.rows)
    assert outcomes["refused"] > 10


def test_an_excel_file_that_claims_all_rows_is_read_at_once():
    content = io.BytesIO(FORMS["Excel"])
    changed = io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("sheet1.xml"):
                start = data.index(b"<dimension")
                end = data.index(b"/>", start) + 2
                data = data[:start] + b'<dimension ref="A1:XFD1048576"/>' + data[end:]
            new.writestr(name, data)
    assert len(parse(changed.getvalue()).rows) == 2
