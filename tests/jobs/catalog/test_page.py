"""HTML page of a catalogue."""

from html.parser import HTMLParser
from urllib.parse import unquote

from jobs.catalog.page import Entry, page


class Reader(HTMLParser):
    """Collects what a browser would load and show."""

    def __init__(self, html):
        super().__init__()
        self.videos, self.images, self.links, self.text = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "video":
            self.videos.append(values)
        if tag == "img":
            self.images.append(unquote(values["src"]))
        if tag == "a":
            self.links.append(unquote(values["href"]))

    def handle_data(self, data):
        self.text += data


def entry(**changes):
    values = {
        "name": "red-dress",
        "photos": ["media/a.jpg", "media/b.jpg"],
        "motion": "media/motion.mp4",
        "result": "red-dress.mp4",
        "poster": "red-dress.png",
        "sheet": "red-dress.jpg",
        "truth": "media/truth.mp4",
        "manifest": "red-dress.json",
        "settings": ["fast", "seed 3"],
        "warnings": ["weights of another person"],
        "width": 128,
        "height": 160,
    }
    return Entry(**(values | changes))


def test_photo_motion_result_and_truth_stand_side_by_side():
    reader = Reader(page([entry()], {}, title="Catalogue"))
    assert reader.images == ["media/a.jpg", "media/b.jpg"]
    assert [video["data-src"] for video in reader.videos] == [
        "media/motion.mp4",
        "red-dress.mp4",
        "media/truth.mp4",
    ]
    for video in reader.videos:
        assert {"loop", "muted", "playsinline"} <= video.keys()
        assert not {"src", "poster", "autoplay"} & video.keys(), "loaded when they come into view"
    assert reader.links == ["red-dress.jpg", "red-dress.json"]
    assert "fast · seed 3" in reader.text
    assert "weights of another person" in reader.text


def test_without_truth_no_place_is_kept_for_it():
    assert len(Reader(page([entry(truth=None)], {}, title="Catalogue")).videos) == 2


def test_failures_are_named_with_their_reason():
    reader = Reader(page([entry()], {"blue": "nobody is in the photo"}, title="Catalogue"))
    assert "1 rendered, 1 failed" in reader.text
    assert "nobody is in the photo" in reader.text


def test_names_are_text_and_never_markup():
    evil = '"><script>alert(1)</script>'
    reader = Reader(page([entry(result=evil)], {evil: evil}, title=evil))
    assert reader.videos[1]["data-src"].count("<") == 0
    assert page([], {evil: evil}, title=evil).count("<script") == 1, "the search alone"
    assert unquote(reader.videos[1]["data-src"]) == evil
