"""Spot notices: how each cloud is asked, and what a node does then."""

import time

import pytest

from cluster import spot_notice


def metadata(answers, asked=None):
    def get(url, headers=None, *, method="GET"):
        if asked is not None:
            asked.append((method, url, dict(headers or {})))
        return next((text for end, text in answers.items() if url.endswith(end)), None)

    return get


def test_aws_is_asked_with_a_session_token():
    asked = []
    get = metadata({"/api/token": "abc", "/spot/instance-action": '{"action": "terminate"}'}, asked)
    assert spot_notice.aws(get)
    assert asked[0][0] == "PUT"
    assert asked[1][2] == {"X-aws-ec2-metadata-token": "abc"}
    assert not spot_notice.aws(metadata({"/api/token": "abc"})), "404 means no notice"


def test_gcp_says_true_when_it_preempts():
    assert spot_notice.gcp(metadata({"/preempted": "TRUE\n"}))
    assert not spot_notice.gcp(metadata({"/preempted": "FALSE"}))


def test_azure_lists_events():
    def text(kind):
        return metadata({"2020-07-01": f'{{"Events": [{{"EventType": "{kind}"}}]}}'})

    assert spot_notice.azure(text("Preempt"))
    assert not spot_notice.azure(text("Reboot"))
    assert not spot_notice.azure(metadata({}))


def test_it_waits_for_the_notice():
    answers = iter([False, False, True])
    spot_notice.wait_for_notice(lambda _: next(answers), poll_seconds=0)
    assert next(answers, None) is None


def test_a_node_that_leaves_is_marked_and_drained(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(spot_notice, "MARKER", tmp_path / "leaves")
    monkeypatch.setattr(spot_notice, "_process_names", list)
    monkeypatch.setattr(spot_notice, "_this_node", lambda: ("10.0.0.1:6379", "ab12"))
    monkeypatch.setattr(spot_notice.subprocess, "run", lambda command, **_: ran.append(command))
    assert not spot_notice.is_leaving()
    assert spot_notice.main(["now", "--seconds", "90"]) == 0
    assert spot_notice.is_leaving()
    assert float((tmp_path / "leaves").read_text()) > time.time() + 60
    (command,) = ran
    assert command[:2] == ["ray", "drain-node"]
    assert command[command.index("--node-id") + 1] == "ab12"
    assert command[command.index("--deadline-remaining-seconds") + 1] == "90"


def test_it_waits_until_the_work_has_moved(monkeypatch):
    seen = [["raylet", "ray::RayTrainWorker"], ["ray::_do"], ["raylet", "ray::IDLE"]]
    monkeypatch.setattr(spot_notice, "_process_names", lambda: seen.pop(0))
    spot_notice.wait_until_idle(60, poll_seconds=0)
    assert seen == []


def test_an_unknown_cloud_is_refused():
    with pytest.raises(SystemExit):
        spot_notice.main(["cumulus"])
