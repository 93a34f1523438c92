"""Downloads from an unreliable local server."""

import csv
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs import download
from jobs.common import video_list
from jobs.common.downloads import Fetcher, FetchError, client

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers by the path's script: what each request in turn gets; then the whole file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site = self.server.site
        wanted = self.headers.get("Range")
        site.requests.append((self.path, wanted))
        plan = site.plans.get(self.path, [])
        step = plan.pop(0) if plan else "whole"
        if isinstance(step, int):
            self._head(step, 0, {"Retry-After": "7"} if step == 429 else {})
            return
        if step == "page":
            self._head(200, 4, {"Content-Type": "text/html; charset=utf-8"})
            self.wfile.write(b"sorr")
            return
        content, tag = site.files.get(self.path, (CONTENT, '"one"'))
        start = 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body, more = content[start:], {"ETag": tag, "Content-Type": "video/mp4"}
        if start:
            more["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if start else 200, len(body), more)
        if step == "broken":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _head(self, code, length, headers):
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format, *args):
        pass


class Site:
    def __init__(self, url):
        self.url = url
        self.plans, self.files, self.requests = {}, {}, []


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetcher():
    """A fetcher that notes how long it would have waited."""
    waits = []
    with client() as http:
        yield Fetcher(http=http, max_tries=3, pause=0.25, sleep=waits.append), waits


def test_passing_faults_are_tried_again_after_a_growing_wait(site, fetcher, tmp_path):
    get, waits = fetcher
    site.plans["/a.mp4"] = [503, 429]
    get.fetch(f"{site.url}/a.mp4", tmp_path / "new" / "a.mp4", DIGEST)
    assert (tmp_path / "new" / "a.mp4").read_bytes() == CONTENT
    # One second, then what the server asked for, then the pause after success.
    assert waits == [1.0, 7.0, 0.25]


def test_a_broken_transfer_continues_where_it_stopped(site, fetcher, tmp_path):
    get, _ = fetcher
    site.plans["/a.mp4"] = ["broken", "broken"]
    get.fetch(f"{site.url}/a.mp4", tmp_path / "a.mp4", DIGEST)
    assert (tmp_path / "a.mp4").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    half = len(CONTENT) // 2
    assert [wanted for _, wanted in site.requests] == [
        None, f"bytes={half}-", f"bytes={half + half // 2}-",
    ]  # fmt: skip


def test_what_another_run_left_is_used_unless_the_file_has_changed(site, fetcher, tmp_path):
    get, _ = fetcher
    site.plans["/a.mp4"] = ["broken"] * 3
    with pytest.raises(FetchError, match="3 times"):
        get.fetch(f"{site.url}/a.mp4", tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()
    site.files["/a.mp4"] = (CONTENT[::-1], '"two"')
    get.fetch(f"{site.url}/a.mp4", tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("plan", "said", "num_requests"),
    [([404], "HTTP 404", 1), (["page"], "a web page", 1), ([500] * 3, "HTTP 500, 3 times", 3)],
)
def test_what_cannot_be_had_is_given_up_with_the_reason(
    plan, said, num_requests, site, fetcher, tmp_path
):
    get, _ = fetcher
    site.plans["/a.mp4"] = plan
    with pytest.raises(FetchError, match=said):
        get.fetch(f"{site.url}/a.mp4", tmp_path / "a.mp4")
    assert len(site.requests) == num_requests
    assert not list(tmp_path.iterdir())


def test_another_content_than_the_digest_is_never_kept(site, fetcher, tmp_path):
    get, _ = fetcher
    site.files["/a.mp4"] = (b"something else", '"x"')
    with pytest.raises(FetchError, match="its SHA-256 is"):
        get.fetch(f"{site.url}/a.mp4", tmp_path / "a.mp4", DIGEST)
    assert not (tmp_path / "a.mp4").exists()


def test_a_missing_person_is_a_reason(fetcher, tmp_path):
    get, waits = fetcher
    with pytest.raises(FetchError, match="ConnectError"):
        get.fetch("http://127.0.0.1:9/a.mp4", tmp_path / "a.mp4")
    assert waits == [1.0, 2.0]


def job(*words):
    return download.main([str(word) for word in (*words, "--pause", 0, "--tries", 2)])


def test_published_lists_become_manifests_that_preprocessing_reads(site, tmp_path, capsys):
    # As UBC Fashion has them: a URL a line, names with plus signs.
    names = {"train": ["91+bk9jsiNS.mp4", "A1B%2Bc.mp4", "gone.mp4"], "test": ["C1.mp4"]}
    for split, files in names.items():
        lines = [f"{site.url}/I/{name}" for name in files]
        (tmp_path / f"fashion_{split}.txt").write_text("\n".join(lines) + "\n")
    site.plans["/I/gone.mp4"] = [404] * 9
    out = tmp_path / "ubc"
    words = [f"--list={split}={tmp_path / f'fashion_{split}.txt'}" for split in names]
    assert job(*words, "--out", out) == 1
    text = capsys.readouterr().out
    assert "gone.mp4: HTTP 404" in text
    assert "train.csv: 2 of 3 files" in text and "test.csv: 1 of 1 files" in text
    with (out / "failed.csv").open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["HTTP 404"]
    found = video_list.find(str(out / "train.csv"))
    assert [video.subject for video in found] == ["91+bk9jsiNS", "A1B+c"]
    assert all((out / video.clip_id).read_bytes() == CONTENT for video in found)

    # Again: only what failed is asked for.
    site.requests.clear()
    del site.plans["/I/gone.mp4"]
    assert job(*words, "--out", out) == 0
    assert [path for path, _ in site.requests] == ["/I/gone.mp4"]
    assert len(video_list.find(str(out / "train.csv"))) == 3


def test_a_csv_of_urls_and_files_with_digests(site, tmp_path, capsys):
    (tmp_path / "here.mp4").write_bytes(CONTENT)
    (tmp_path / "other.mp4").write_bytes(b"other")
    (tmp_path / "mine.csv").write_text(
        "path,name,subject,split,sha256\n"
        f"here.mp4,,anna,train,{DIGEST}\n"
        f"{site.url}/x?id=1,bert.mp4,bert,train,{DIGEST}\n"
        f"other.mp4,,,val,{DIGEST}\n"
        "missing.mp4,,,val,\n"
    )
    out = tmp_path / "mine"
    # A file that is there but is another one is fetched again.
    (out / "files" / "train").mkdir(parents=True)
    (out / "files" / "train" / "bert.mp4").write_bytes(b"old")
    assert job("--list", tmp_path / "mine.csv", "--out", out) == 1
    text = capsys.readouterr().out
    assert "other.mp4: its SHA-256 is" in text and "missing.mp4: no such file" in text
    found = video_list.find(str(out / "train.csv"))
    assert [(video.subject, video.path) for video in found] == [
        ("anna", str(tmp_path / "here.mp4")),
        ("bert", str(out / "files" / "train" / "bert.mp4")),
    ]
    assert (out / "files" / "train" / "bert.mp4").read_bytes() == CONTENT


def test_the_lists_are_compared_with_the_papers_split(site, tmp_path, capsys, monkeypatch):
    urls = {}
    for split, count in (("train", 3), ("test", 2)):
        urls[split] = f"{site.url}/fashion_{split}.txt"
        lines = [f"{site.url}/{split}{index}.mp4" for index in range(count)]
        site.files[f"/fashion_{split}.txt"] = ("\n".join(lines).encode(), '"list"')
    monkeypatch.setattr(download, "UBC_FASHION", urls)
    assert job("--ubc-fashion", "--out", tmp_path / "ubc") == 0
    text = capsys.readouterr().out
    assert "train.csv: 3 of 3 files; the paper has 339 and does not say which" in text
    assert "test.csv: 2 of 2 files; the paper has 100" in text


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({}, "or --deepfashion, got 0 of them"),
        ({"a.txt": "# none"}, "at least one file"),
        ({"a.txt": ""}, "at least one file"),
        ({"a.txt": "ftp://x/a.mp4"}, "http:// or https://"),
        ({"a.csv": "file\nx"}, "column 'url' or 'path'"),
        ({"a.csv": "url,sha256\nhttp://x/a.mp4,12"}, "64 hexadecimal digits"),
        ({"a.csv": "url,name\nhttp://x/a.mp4,../a.mp4"}, "name must be that of a file"),
        ({"a.csv": "url,split\nhttp://x/a.mp4,../x"}, "split must be usable"),
    ],
)
def test_lists_that_cannot_be_used_are_rejected(lists, said, tmp_path, capsys):
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    words = [f"--list={tmp_path / name}" for name in lists]
    assert job(*words, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_wrong_fails_alone(tmp_path, capsys):
    for name in ("a.mp4", "b.mp4", "other/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT)
    (tmp_path / "a.csv").write_text("path;split\na.mp4;one\nb.mp4;one;x;y\n;one\nother/a.mp4;one\n")
    assert job(f"--list={tmp_path / 'a.csv'}", "--out", tmp_path / "out") == 1
    text = capsys.readouterr().out
    assert "failed b.mp4: line 3: 4 cells where the header has 2" in text
    assert "failed line 4: list must give a url or path" in text
    assert "failed other/a.mp4: line 5: 'a.mp4' is listed already" in text
    assert [video.path for video in video_list.find(str(tmp_path / "out" / "one.csv"))] == [
        str(tmp_path / "a.mp4")
    ]


def test_a_list_in_latin_1_is_one_line(tmp_path, capsys):
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_bytes("url\nhttps://x.example/Grö.mp4\n".encode("latin-1"))
        assert job(f"--list={tmp_path / name}", "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "is not in UTF-8 (byte 0xF6 in line 2)" in error and error.count("\n") == 1


class TestDeepFashion:
    @pytest.fixture
    def folder(self, tmp_path):
        """The In-shop folder's layout: outfits 01 and 02 of one item, one of another."""
        names = [
            "WOMEN/Dresses/id_00000002/01_1_front.jpg",
            "WOMEN/Dresses/id_00000002/01_3_back.jpg",
            "WOMEN/Dresses/id_00000002/01_6_flat.jpg",
            "WOMEN/Dresses/id_00000002/02_1_front.jpg",
            "WOMEN/Dresses/id_00000002/02_2_side.jpg",
            "MEN/Denim/id_00000080/01_1_front.jpg",
            "MEN/Denim/id_00000080/01_4_full.jpg",
            "MEN/Denim/id_00000080/02_1_front.jpg",
        ]
        lines = [str(len(names)), "image_name item_id evaluation_status"]
        for name in names:
            path = tmp_path / "In-shop" / "img_highres" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            status = "train" if name.startswith("WOMEN") else "query"
            lines.append(f"img/{name}    {path.parent.name}    {status}")
        (tmp_path / "In-shop" / "Eval").mkdir()
        (tmp_path / "In-shop" / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines))
        return tmp_path / "In-shop"

    def test_outfits_seen_twice_are_listed_by_split(self, folder, tmp_path, capsys):
        assert job("--deepfashion", folder, "--out", tmp_path / "out") == 0
        assert "train.csv: 2 outfits, 4 photos" in capsys.readouterr().out
        first, second = video_list.find(str(tmp_path / "out" / "train.csv"))
        assert first.subject == "WOMEN-Dresses-id_00000002-01"
        assert second.subject == "WOMEN-Dresses-id_00000002-02"
        root = folder / "img_highres" / "WOMEN" / "Dresses" / "id_00000002"
        assert first.path == f"{root / '01_1_front.jpg'};{root / '01_3_back.jpg'}"
        (test,) = video_list.find(str(tmp_path / "out" / "test.csv"))
        assert test.path.count(";") == 1 and video_list.is_photo_set(test.path)

    def test_without_a_partition_everything_is_for_training(self, folder, tmp_path):
        (folder / "Eval" / "list_eval_partition.txt").unlink()
        assert job("--deepfashion", folder, "--out", tmp_path / "out") == 0
        assert len(video_list.find(str(tmp_path / "out" / "train.csv"))) == 3
        assert not (tmp_path / "out" / "test.csv").exists()

    def test_other_folders_are_rejected(self, folder, tmp_path, capsys):
        assert job("--deepfashion", tmp_path / "none", "--out", tmp_path / "out") == 2
        assert "img_highres or img" in capsys.readouterr().err
        (folder / "Eval" / "list_eval_partition.txt").write_text("1\nh\nimg/a.jpg id val\n")
        assert job("--deepfashion", folder, "--out", tmp_path / "out") == 2
        assert "train|query|gallery" in capsys.readouterr().err
