"""One deployment per agent: thin shells that open what the agent needs and pass calls on.

Queues are bounded at every hop. Only Reasoning holds a model; it scales by its work (`serve.scaling`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.deployment import Deployment

from ray_app.agents.explanation import ExplanationAgent
from ray_app.agents.interface import Detail, Dossier, Profile, Proposal, Review, SecondLook, Slate, UserView
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.reflection import ReflectionAgent
from ray_app.agents.retrieval import DataRetrievalAgent
from ray_app.agents.swing import SwingAgent
from ray_app.artifacts import Folder
from ray_app.bundle import Bundle, synthesis_weights
from ray_app.config import EngineConfig, ServeConfig
from ray_app.data.store import Store, UserSummary
from ray_app.engines.student import StudentEngine
from ray_app.records import Context, Explanation, Interaction, Item, Verdict
from ray_app.tracing import traced
from serve.scaling import queued_work
from serve.settings import Settings

logging.raiseExceptions = False
"""A line that a full disk does not take is lost. Otherwise the error is printed, Serve logs what is printed,
and so on until the request fails of it."""
MakeStudent = Callable[[Bundle, EngineConfig], StudentEngine]
HEALTH_S = 30.0
"""A replica that generates no token in this time is replaced."""
LEAVE_S = 5.0
"""A replica that is to end has the deadline, and this, for the requests at hand."""
SMALL_CPUS = 0.2
"""Logical CPUs of an agent without a model: it mostly waits."""
REASONING_CPUS = 0.5
UPSCALE_S, DOWNSCALE_S = 10.0, 300.0


@traced
class Retrieval:
    def __init__(self, settings: Settings):
        self._agent = DataRetrievalAgent(open_bundle(settings), Store(settings.store))
        self._agent.warm()

    async def fetch(self, user_id: str | None, item_id: str | None, opinions: dict[str, int]) -> UserView:
        return await self._agent.fetch(user_id, item_id, opinions)

    async def assemble(self, view: UserView, proposal: Proposal) -> Slate:
        return await self._agent.assemble(view, proposal)

    async def gather(self, view: UserView, proposal: Proposal) -> list[Context]:
        return await self._agent.gather(view, proposal)

    async def without(self, view: UserView, items: list[str], left_out: list[list[str]]) -> Dossier:
        return await self._agent.without(view, items, left_out)

    async def profile(self, user_id: str, limit: int) -> Profile:
        return await self._agent.profile(user_id, limit)

    async def users(self, limit: int, prefix: str) -> list[UserSummary]:
        return await self._agent.users(limit, prefix)

    async def item(self, item_id: str) -> Item:
        return await self._agent.item(item_id)

    async def items(self, limit: int, text: str) -> list[Item]:
        return await self._agent.items(limit, text)

    async def record(self, interaction: Interaction, event: str, key: str | None) -> bool:
        return await self._agent.record(interaction, event, key)

    async def version(self) -> str | None:
        return await self._agent.version()


@traced
class Swing:
    def __init__(self, settings: Settings):
        self._agent = SwingAgent(open_bundle(settings))
        self._agent.warm()

    async def propose(self, view: UserView, n: int) -> Proposal:
        return await self._agent.propose(view, n)

    async def estimate(self, dossier: Dossier) -> list[Verdict]:
        return await self._agent.estimate(dossier)


@traced
class Reasoning:
    def __init__(self, settings: Settings, make_student: MakeStudent):
        bundle = open_bundle(settings)
        self._agent = ReasoningAgent(bundle, make_student(bundle, settings.config.serve.engine))
        self._warm = False

    async def decide(self, slate: Slate) -> list[Verdict]:
        return await self._agent.decide(slate)

    async def write(self, dossier: Dossier, verdicts: list[Verdict], attempt: int) -> list[Verdict]:
        return await self._agent.write(dossier, verdicts, attempt)

    async def reconsider(self, dossier: Dossier, round: int) -> list[SecondLook]:
        return await self._agent.reconsider(dossier, round)

    async def rethink(self, dossier: Dossier, others: Dossier) -> list[float]:
        return await self._agent.rethink(dossier, others)

    async def healthy(self) -> None:
        await self._agent.healthy()

    async def check_health(self) -> None:
        """Serve calls this, first before the replica is given any work; an exception has it replaced."""
        if not self._warm:
            await self._agent.warm()
            self._warm = True
        await asyncio.wait_for(self._agent.healthy(), HEALTH_S)


@traced
class Reflection:
    def __init__(self, settings: Settings):
        self._agent = ReflectionAgent(settings.config.serve, synthesis_weights(Folder(settings.bundle)))

    async def triggers(self, dossier: Dossier, verdicts: list[Verdict], high_stakes: bool) -> list[list[str]]:
        return await self._agent.triggers(dossier, verdicts, high_stakes)

    async def synthesise(
        self,
        dossier: Dossier,
        verdicts: list[Verdict],
        triggers: list[list[str]],
        looks: list[list[SecondLook]],
    ) -> list[Review]:
        return await self._agent.synthesise(dossier, verdicts, triggers, looks)


@traced
class Explaining:
    def __init__(self):
        self._agent = ExplanationAgent()

    async def present(self, dossier: Dossier, verdicts: list[Verdict], detail: Detail) -> list[Explanation]:
        return await self._agent.present(dossier, verdicts, detail)


def open_bundle(settings: Settings) -> Bundle:
    """The bundle, from this node's copy of it where it lies elsewhere, served as the settings say now."""
    bundle = Bundle.open(Folder(settings.bundle).local())
    config = bundle.config.model_copy(update={"serve": settings.config.serve})
    return replace(bundle, config=config)


def small(agent: type, name: str, config: ServeConfig) -> Deployment:
    """The deployment of an agent without a model."""
    return serve.deployment(
        name=name,
        max_ongoing_requests=config.max_ongoing,
        max_queued_requests=config.max_queued,
        graceful_shutdown_timeout_s=config.deadline_s + LEAVE_S,
        ray_actor_options={"num_cpus": SMALL_CPUS},
    )(agent)


def reasoning(config: ServeConfig) -> Deployment:
    """The deployment of the reasoning agent: fixed or autoscaled, with its share of a GPU."""
    deployment = serve.deployment(
        name="Reasoning",
        max_ongoing_requests=config.max_ongoing,
        max_queued_requests=config.max_queued,
        health_check_period_s=10.0,
        health_check_timeout_s=HEALTH_S,
        graceful_shutdown_timeout_s=config.deadline_s + LEAVE_S,
        ray_actor_options={
            "num_cpus": REASONING_CPUS,
            "num_gpus": config.reasoning_gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(config.reasoning_threads)}},
        },
    )(Reasoning)
    if config.reasoning_max_replicas <= config.reasoning_replicas:
        return deployment.options(num_replicas=config.reasoning_replicas)
    scaling = AutoscalingConfig(
        min_replicas=config.reasoning_replicas,
        max_replicas=config.reasoning_max_replicas,
        target_ongoing_requests=max(1.0, config.max_ongoing / 2),
        upscale_delay_s=UPSCALE_S,
        downscale_delay_s=DOWNSCALE_S,
        policy=AutoscalingPolicy(policy_function=queued_work),
    )
    return deployment.options(autoscaling_config=scaling)
