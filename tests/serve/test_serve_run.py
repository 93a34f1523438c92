"""`serve run serve.app` without a running cluster."""

import ray

from cluster.capacity import one_machine
from serve import application
from serve.config import Settings


def test_application_connects_to_ray(recipe_only_model, monkeypatch):
    started = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options))

    def inspect(profile):
        assert started, "Ray answers only after it has been started"
        return one_machine(cpus=2)

    monkeypatch.setattr(application, "inspect", inspect)
    for _ in range(2):
        application.app(Settings(model=str(recipe_only_model), replicas=1))
    assert started == [{"namespace": "serve"}]
