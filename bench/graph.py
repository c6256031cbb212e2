"""The service on a Ray of its own, for benchmarks and tests: nothing of it is left afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.cluster import free_port
from pipelines.env import ROOT
from serve.deployments import MakeStudent
from serve.settings import Settings


@contextmanager
def served(settings: Settings, make_student: MakeStudent, cpus: int) -> Iterator[str]:
    """Its address, once Serve runs the graph; the agents may still be warming up (`/readyz`)."""
    import ray
    from ray import serve

    from serve.app import application

    port = free_port()
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(settings, make_student), name="rationale")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()
