"""Choice of samplers and concurrency of a catalogue job, without Serve."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatus

from cluster.capacity import one_machine
from jobs.catalog import rendering
from serve.config import Settings


class FakeBackend:
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


class Renderer:
    """Ends no video before some number of them is under way."""

    def __init__(self, expected):
        self.expected, self.under_way, self.most = expected, 0, 0
        self.render = SimpleNamespace(remote=self._render)

    async def _render(self, _):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for _ in range(3000):
            if self.most >= self.expected:
                break
            await asyncio.sleep(0.01)
        self.under_way -= 1
        return SimpleNamespace(error=None)


@pytest.fixture
def render(recipe_only_model, tmp_path, monkeypatch):
    """Runs a job of no items beside some applications; gives what was done to them."""
    settings = Settings(model=str(recipe_only_model), subjects="")
    monkeypatch.setattr(rendering, "renderer_app", lambda *_: None)
    monkeypatch.setattr(rendering, "reserve", lambda *_, **__: contextlib.nullcontext())

    class Run:
        version = settings.served()[1]

        def __call__(self, applications, folder="out"):
            serve = FakeBackend(settings, applications)
            monkeypatch.setattr(rendering, "ray_serve", serve)
            output = SimpleNamespace(settings=settings, root=tmp_path / folder)
            assert rendering.render_items([], output, one_machine(cpus=2)) == {}
            return serve.done

    return Run()


def test_a_job_starts_samplers_and_takes_them_away(render):
    (_, own), *rest = render({})
    assert own.startswith("render-")
    assert rest == [("delete", own), ("shutdown",)]


def test_a_private_session_leaves_the_end_of_serve_to_ray(render, monkeypatch):
    monkeypatch.setattr(rendering.driver, "is_private_session", lambda: True)
    (_, own), *rest = render({})
    assert rest == [("delete", own)]


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


@pytest.mark.parametrize(
    ("asked", "capacity", "expected"),
    [
        ({}, one_machine(cpus=2), 4),
        ({}, one_machine(cpus=96, gpus=12), 24),
        ({"replicas": 6}, one_machine(cpus=96, gpus=12), 12),
        ({"replicas": 6, "frames_at_once": 30}, one_machine(cpus=96), 36),
    ],
)
def test_every_sampler_of_the_job_has_a_video(
    recipe_only_model, tmp_path, monkeypatch, asked, capacity, expected
):
    """Videos of a chunk each, so that fewer at once would leave samplers idle."""
    settings = Settings(model=str(recipe_only_model), subjects="", **asked)
    renderer, serve, given = Renderer(expected), FakeBackend(settings, {}), []
    serve.run = lambda *_, **__: renderer
    serve.versions = {}
    serve.delete = lambda _: None
    monkeypatch.setattr(rendering, "ray_serve", serve)
    monkeypatch.setattr(rendering, "renderer_app", lambda settings, _: given.append(settings))
    monkeypatch.setattr(rendering, "reserve", lambda *_, **__: contextlib.nullcontext())
    output = SimpleNamespace(
        settings=settings,
        root=tmp_path,
        motion=lambda _: tmp_path,
        video_folder=lambda item: SimpleNamespace(
            id=item.name, path=item.name, finished_frames=set
        ),
        publish=lambda *_: None,
    )
    items = [SimpleNamespace(name=str(number), num_frames=8) for number in range(40)]
    assert rendering.render_items([[item] for item in items], output, capacity) == {}
    assert renderer.most == expected
    assert [settings.videos_at_once for settings in given] == [expected]
