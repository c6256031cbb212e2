"""Serve handles as the orchestrator's team, with Ray's exceptions turned into ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_app import tracing
from ray_app.agents.interface import Team
from ray_app.errors import EngineError, OverloadedError, RationaleError

GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)


def call(handle: DeploymentHandle, method: str, gone: type[RationaleError]) -> Callable[..., Awaitable[Any]]:
    """An async function for a method behind a handle.

    Raises the agent's own errors as they were raised there, OverloadedError when its queue is full, and
    `gone` when its replica has died or is not there.
    """
    remote = getattr(handle, method)

    async def called(*args: Any) -> Any:
        with tracing.hop(f"{handle.deployment_name}.{method}") as carrier:
            return await answered(*args, **({"carrier": carrier} if carrier else {}))

    async def answered(*args: Any, **more: Any) -> Any:
        try:
            return await remote.remote(*args, **more)
        except BackPressureError as error:
            raise OverloadedError(
                f"{handle.deployment_name} has a full queue: send the request again"
            ) from error
        except GONE as error:
            raise gone(f"{handle.deployment_name} is not available: it is being started again") from error
        except RayTaskError as error:
            if isinstance(error.cause, RationaleError | TimeoutError):
                raise error.cause from None
            raise

    return called


def team(
    retrieval: DeploymentHandle,
    swing: DeploymentHandle,
    reasoning: DeploymentHandle,
    reflection: DeploymentHandle,
    explanation: DeploymentHandle,
) -> Team:
    """The team behind these handles. Only a missing reasoning agent can be done without."""
    return Team(
        fetch=call(retrieval, "fetch", OverloadedError),
        propose=call(swing, "propose", OverloadedError),
        assemble=call(retrieval, "assemble", OverloadedError),
        estimate=call(swing, "estimate", OverloadedError),
        decide=call(reasoning, "decide", EngineError),
        write=call(reasoning, "write", EngineError),
        reconsider=call(reasoning, "reconsider", EngineError),
        triggers=call(reflection, "triggers", OverloadedError),
        synthesise=call(reflection, "synthesise", OverloadedError),
        present=call(explanation, "present", OverloadedError),
        without=call(retrieval, "without", OverloadedError),
        rethink=call(reasoning, "rethink", EngineError),
    )
