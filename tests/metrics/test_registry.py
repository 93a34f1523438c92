"""The list of scores: how they are chosen, and that each says how it is to be read."""

import re

import pytest

from dreampose.errors import InputError
from dreampose.metrics import DEFAULT, GROUPS, METRICS, choose, published_scores


def test_a_group_stands_for_its_scores_and_order_and_repetition_do_not_matter():
    assert [m.name for m in choose("ssim, l1,ssim")] == ["l1", "ssim"]
    assert {m.name for m in choose("lite")} == {"lpips-lite", "fid-lite", "fvd-lite"}
    assert choose("all") == list(METRICS.values())


def test_nothing_needs_provided_weights_by_default():
    assert all(b.package for metric in choose(DEFAULT) for b in metric.backbones)


@pytest.mark.parametrize("names", ["", " , ", "l1,fid-light"])
def test_unknown_scores_are_refused_by_name(names):
    with pytest.raises(InputError, match="^metrics must"):
        choose(names)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_each_score_says_how_it_is_to_be_read(metric):
    for word in ("Range", "Resolution:", "Colours:", "Backbone:", "Source:"):
        assert word in metric.about, word
    for backbone in metric.backbones:
        assert backbone.file.split("/")[-1] in metric.about
        assert backbone.sha256[:8] in metric.about
    assert metric.group in GROUPS


def test_a_lite_score_is_never_taken_for_a_published_one():
    for metric in METRICS.values():
        assert (
            (metric.group == "lite")
            == metric.name.endswith("-lite")
            == metric.title.endswith("-lite")
        )
        if metric.group == "lite":
            assert metric.title not in published_scores.COLUMNS
            assert "not" in metric.about and "compare" in metric.about


def test_the_paper_s_table_is_whole():
    assert all(len(row) == len(published_scores.COLUMNS) for row in published_scores.ROWS.values())
    numbers = [cell for row in published_scores.ROWS.values() for cell in row if cell != "–"]
    assert all(re.fullmatch(r"\d*\.\d+", cell) for cell in numbers)
