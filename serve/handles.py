"""Serve handles as the orchestrator's team, with Ray's exceptions turned into ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_app import tracing
from ray_app.agents.interface import Team
from ray_app.errors import EngineError, OverloadedError, RationaleError
from serve.breaker import Breaker

ATTEMPTS = 3
WAIT = 0.3
"""Share of the deadline that an agent without a model may take: it needs milliseconds."""
GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)


def call(
    handle: DeploymentHandle,
    method: str,
    gone: type[RationaleError],
    attempts: int = 1,
    limit_s: float | None = None,
) -> Callable[..., Awaitable[Any]]:
    """An async function for a method behind a handle. Where its caller goes, the work is called off.

    Raises the agent's own errors as they were raised there, OverloadedError when its queue is full, and
    `gone` when its replica has died or is not there, `attempts` times: more than once only for what may be
    done twice. The next attempt goes to another replica, or waits for the one that Serve starts. All of them
    together take `limit_s` at most: nobody who asks while there is no replica waits for longer.
    """
    remote = getattr(handle, method)

    async def called(*args: Any) -> Any:
        with tracing.hop(f"{handle.deployment_name}.{method}") as carrier:
            try:
                async with asyncio.timeout(limit_s):
                    return await answered(*args, **({"carrier": carrier} if carrier else {}))
            except TimeoutError as error:
                raise gone(f"{handle.deployment_name} did not answer in time: ask again") from error

    async def answered(*args: Any, **more: Any) -> Any:
        for _ in range(attempts - 1):
            try:
                return await once(*args, **more)
            except gone as error:
                if not isinstance(error.__cause__, GONE):
                    raise
        return await once(*args, **more)

    async def once(*args: Any, **more: Any) -> Any:
        response = remote.remote(*args, **more)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
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
    deadline_s: float,
    breaker: Breaker,
) -> Team:
    """The team behind these handles. Only a missing reasoning agent can be done without, so `breaker` has
    nobody wait for a silent one; the others have no state that a second attempt could spoil."""

    def again(handle: DeploymentHandle, method: str) -> Callable[..., Awaitable[Any]]:
        return call(handle, method, OverloadedError, ATTEMPTS, WAIT * deadline_s)

    def student(method: str) -> Callable[..., Awaitable[Any]]:
        return breaker.guard(call(reasoning, method, EngineError))

    return Team(
        fetch=again(retrieval, "fetch"),
        propose=again(swing, "propose"),
        assemble=again(retrieval, "assemble"),
        gather=again(retrieval, "gather"),
        estimate=again(swing, "estimate"),
        decide=student("decide"),
        write=student("write"),
        reconsider=student("reconsider"),
        triggers=again(reflection, "triggers"),
        synthesise=again(reflection, "synthesise"),
        present=again(explanation, "present"),
        without=again(retrieval, "without"),
        rethink=student("rethink"),
    )
