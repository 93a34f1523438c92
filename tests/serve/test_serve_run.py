"""`serve run serve.app` without a running cluster."""

import ray

from serve import application
from serve.config import Settings


def test_application_connects_to_ray(recipe_only_model, monkeypatch):
    started = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options))

    def resources():
        assert started, "Ray answers only after it has been started"
        return {"CPU": 2.0}

    monkeypatch.setattr(ray, "cluster_resources", resources)
    for _ in range(2):
        application.app(Settings(model=str(recipe_only_model), replicas=1))
    assert started == [{"namespace": "serve"}]
