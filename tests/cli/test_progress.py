"""Progress bar of commands and jobs."""

import io
import time

import pytest

from dreampose.options.progress import ProgressBar


@pytest.mark.parametrize(("total", "text"), [(None, "starting [00:00]"), (3, "| 0/3 [00:00]")])
def test_a_new_bar_has_no_placeholders(total, text):
    output = io.StringIO()
    ProgressBar(total=total, unit="step", file=output).close()
    first = output.getvalue().split("\r")[1]
    assert text in first
    assert "?" not in first


def test_the_rate_is_shown_after_the_first_step():
    output = io.StringIO()
    bar = ProgressBar(total=4, initial=2, desc="train", unit="step", file=output, mininterval=0)
    time.sleep(0.01)
    bar.update()
    bar.close()
    assert output.getvalue().split("\r")[1].startswith("train:  50%")
    assert "step/s]" in output.getvalue()
    assert "3/4" in output.getvalue()
