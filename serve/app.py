"""The application: five agents and an ingress, from a run folder.

serve run configs/serve/local.yaml          (in the foreground, on a cluster of its own)
serve deploy configs/serve/production.yaml  (on a running cluster)
serve build serve.app:app                   (prints a config file with every deployment's options)
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from ray_app import __version__
from ray_app.agents.orchestrator import Orchestrator
from ray_app.artifacts import Folder
from ray_app.bundle import MANIFEST, Bundle
from ray_app.config import EngineConfig
from ray_app.engines.student import StudentEngine
from ray_app.errors import EngineError, OverloadedError
from serve.breaker import Breaker
from serve.deployments import (
    LEAVE_S,
    SMALL_CPUS,
    Explaining,
    MakeStudent,
    Reflection,
    Retrieval,
    Swing,
    reasoning,
    small,
)
from serve.handles import call, team
from serve.ingress import Front, make_api
from serve.keys import Keys, check_hosts
from serve.published import Published
from serve.settings import Settings, settings

INGRESS = "Ingress"
SILENCE = 0.2
"""Share of the deadline after which a student that was asked and says nothing is done without."""
SPARE = 32
"""Requests that Serve lets in beyond our own limit, so that it is the ingress that refuses them."""


@serve.ingress()
class Ingress:
    """Holds no model and no data: the routes and the orchestrator."""

    def __init__(
        self,
        settings: Settings,
        retrieval: DeploymentHandle,
        swing: DeploymentHandle,
        reasoning: DeploymentHandle,
        reflection: DeploymentHandle,
        explanation: DeploymentHandle,
    ):
        bundle = Folder(settings.bundle)
        facts = bundle.read_json(MANIFEST)
        versions = {
            "rationale": __version__,
            "bundle": facts["version"],
            "adapters": ", ".join(["global", *facts["experts"]]),
        }
        keys = Keys.of(os.environ)
        check_hosts([listening()], keys)
        deadline_s = settings.config.serve.deadline_s
        breaker = Breaker(call(reasoning, "healthy", EngineError), SILENCE * deadline_s)
        agents = team(retrieval, swing, reasoning, reflection, explanation, deadline_s, breaker)
        self._front = Front(
            orchestrator=Orchestrator(agents, settings.config.serve, versions),
            profile=call(retrieval, "profile", OverloadedError),
            users=call(retrieval, "users", OverloadedError),
            item=call(retrieval, "item", OverloadedError),
            items=call(retrieval, "items", OverloadedError),
            record=call(retrieval, "record", OverloadedError),
            store_version=call(retrieval, "version", OverloadedError),
            healthy=breaker.healthy,
            config=settings.config,
            versions=versions,
            published=Published.read(bundle, facts, versions),
            keys=keys,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._api = make_api(self._front)
        return self._api

    async def close(self, limit_s: float) -> int:
        """Let no request in any more and wait for those at work; how many are left after `limit_s`."""
        return await self._api.state.pace.close(limit_s)


def build(args: dict[str, str]) -> Application:
    """The application from the arguments `config`, `run` and optionally `bundle`, see `settings`.

    Raises ConfigError where it would answer others than this machine without API keys.
    """
    found = settings(args)
    check_hosts([found.config.serve.host], Keys.of(os.environ))
    return application(found, vllm_student)


def __getattr__(name: str) -> Application:
    """`app`: the application of the default run, or of RATIONALE_CONFIG and RATIONALE_RUN, for tools that
    want one by name."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    config = os.environ.get("RATIONALE_CONFIG", "configs/local.yaml")
    return build({"config": config, "run": os.environ.get("RATIONALE_RUN", "runs/local")})


def listening() -> str:
    """The address that this cluster's proxies listen on: it may differ from `serve.host`."""
    client = _get_global_client()
    assert client is not None, "an ingress runs under a controller"
    return client.http_config.host or "127.0.0.1"


def application(settings: Settings, make_student: MakeStudent) -> Application:
    """The graph of deployments around a student engine."""
    config = settings.config.serve
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=config.max_ongoing + config.max_queued + SPARE,
        max_queued_requests=config.max_queued,
        graceful_shutdown_timeout_s=config.deadline_s + LEAVE_S,
        ray_actor_options={"num_cpus": SMALL_CPUS},
    )(Ingress)
    return ingress.bind(
        settings,
        small(Retrieval, "Retrieval", config).bind(settings),
        small(Swing, "Swing", config).bind(settings),
        reasoning(config).bind(settings, make_student),
        small(Reflection, "Reflection", config).bind(settings),
        small(Explaining, "Explanation", config).bind(),
    )


def end(name: str, limit_s: float) -> int:
    """End an application, its ingress first; how many requests it had still at work after `limit_s`.

    Serve ends the deployments of an application all at once, each for itself: an agent that has nothing to do
    at that moment is gone, and a request that would have come to it next is lost with it.
    """
    ingress = serve.get_deployment_handle(INGRESS, name)
    ingress._init(_run_router_in_separate_loop=True)  # with RAY_SERVE_THROUGHPUT_OPTIMIZED it wants one here
    left = sum(ingress.broadcast("close", limit_s).results(timeout_s=limit_s + LEAVE_S))
    serve.delete(name)
    return left


def vllm_student(bundle: Bundle, config: EngineConfig) -> StudentEngine:
    """The student on vLLM, which only the replica that runs it imports."""
    from ray_app.engines.vllm_student import VllmStudent

    return VllmStudent(bundle, config)
