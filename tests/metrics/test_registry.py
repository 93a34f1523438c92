"""Selection and documentation of scores."""

import re

import pytest

from dreampose.errors import InputError
from dreampose.metrics import DEFAULT, GROUPS, METRICS, choose, published_scores


def test_choose_accepts_groups_and_ignores_order_and_duplicates():
    assert [m.name for m in choose("ssim, l1,ssim")] == ["l1", "ssim"]
    assert {m.name for m in choose("lite")} == {"lpips-lite", "fid-lite", "fvd-lite"}
    assert choose("all") == list(METRICS.values())


def test_default_scores_need_no_weights_from_the_user():
    assert all(b.package for metric in choose(DEFAULT) for b in metric.backbones)


@pytest.mark.parametrize("names", ["", " , ", "l1,fid-light"])
def test_unknown_scores_are_an_error(names):
    with pytest.raises(InputError, match="^metrics must"):
        choose(names)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_each_score_documents_range_resolution_colours_backbone_and_source(metric):
    for word in ("Range", "Resolution:", "Colours:", "Backbone:", "Source:"):
        assert word in metric.about, word
    for backbone in metric.backbones:
        assert backbone.file.split("/")[-1] in metric.about
        assert backbone.sha256[:8] in metric.about
    assert metric.group in GROUPS


def test_lite_scores_are_distinguishable_from_published_ones():
    for metric in METRICS.values():
        assert (
            (metric.group == "lite")
            == metric.name.endswith("-lite")
            == metric.title.endswith("-lite")
        )
        if metric.group == "lite":
            assert metric.title not in published_scores.COLUMNS
            assert re.search(r"not\s+comparable with", metric.about)


def test_published_tables_are_complete():
    assert all(len(row) == len(published_scores.COLUMNS) for row in published_scores.ROWS.values())
    numbers = [cell for row in published_scores.ROWS.values() for cell in row if cell != "–"]
    assert all(re.fullmatch(r"\d*\.\d+", cell) for cell in numbers)
