"""Whose samplers a catalogue job renders with, by a stand-in for Serve."""

from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatus

from serve import batch
from serve.config import Settings


class StandIn:
    """Serve with some applications; each is known by the version of the model that it serves."""

    def __init__(self, settings, applications):
        self.settings, self.versions = settings, dict(applications)
        self.done = []

    def status(self):
        running = SimpleNamespace(status=ApplicationStatus.RUNNING, deployments={"Renderer": None})
        return SimpleNamespace(applications=dict.fromkeys(self.versions, running), proxies={})

    def get_deployment_handle(self, _deployment, name):
        folder, _, subjects = self.settings.served()
        answer = folder, self.versions[name], subjects
        call = SimpleNamespace(remote=lambda: SimpleNamespace(result=lambda: answer))
        return SimpleNamespace(describe=call)

    def start(self, **_):
        pass

    def run(self, _, name, **__):
        self.done.append(("run", name))
        self.versions[name] = self.settings.served()[1]
        return self.get_deployment_handle("Renderer", name)

    def delete(self, name):
        self.done.append(("delete", name))
        del self.versions[name]

    def shutdown(self):
        self.done.append(("shutdown",))


@pytest.fixture
def render(bare_model, tmp_path, monkeypatch):
    """Runs a job of no items beside some applications; gives what was done to them."""
    settings = Settings(model=str(bare_model), subjects="")
    monkeypatch.setattr(batch, "renderer_app", lambda *_: None)

    def run(applications, folder="out"):
        serve = StandIn(settings, applications)
        monkeypatch.setattr(batch, "ray_serve", serve)
        output = SimpleNamespace(settings=settings, root=tmp_path / folder)
        assert batch.render_items([], output, {"CPU": 2.0}) == {}
        return serve.done

    run.version = settings.served()[1]
    return run


def test_a_job_starts_samplers_and_takes_them_away(render):
    (_, own), *rest = render({})
    assert own.startswith("render-")
    assert rest == [("delete", own), ("shutdown",)]


def test_a_running_service_of_the_same_model_is_used_and_left(render):
    assert render({"shop": render.version}) == []


def test_a_service_of_another_model_is_left_alone(render):
    (_, own), *rest = render({"shop": "another"})
    assert rest == [("delete", own)]


def test_another_jobs_samplers_are_not_shared(render):
    (_, other), *_ = render({}, "elsewhere")
    (_, own), *rest = render({other: render.version})
    assert own != other
    assert rest == [("delete", own)]


@pytest.mark.parametrize("version", ["this", "older"])
def test_what_a_killed_run_left_is_gone_before_others_render_in_its_folder(render, version):
    (_, own), *_ = render({})
    done = render({own: render.version if version == "this" else version})
    assert done == [("delete", own), ("run", own), ("delete", own), ("shutdown",)]
