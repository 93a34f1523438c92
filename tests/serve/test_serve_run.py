"""`serve run serve.app` where no Ray runs: it builds the application before it connects."""

import ray

from serve import application
from serve.config import Settings


def test_the_application_connects_by_itself(bare_model, monkeypatch):
    started = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options))

    def resources():
        assert started, "Ray answers only after it has been started"
        return {"CPU": 2.0}

    monkeypatch.setattr(ray, "cluster_resources", resources)
    for _ in range(2):
        application.app(Settings(model=str(bare_model), replicas=1))
    assert started == [{"namespace": "serve"}]
