"""The HTTP API and the page, over an orchestrator: FastAPI without Ray.

POST /v1/recommendations   {user_id, k, detail, high_stakes}
POST /v1/explanations      {user_id, item_id, detail, high_stakes}
POST /v1/interactions      {user_id, item_id, rating | label, timestamp, event, key}
GET  /v1/users  /v1/users/{id}  /v1/items  /v1/items/{id}
GET  /healthz  /readyz  /openapi.json  /docs  /
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from ray_app.agents.interface import Detail, Profile
from ray_app.agents.orchestrator import Orchestrator
from ray_app.config import Config
from ray_app.data.store import UserSummary
from ray_app.errors import RationaleError
from ray_app.records import Interaction, Item, Recommendation
from serve.limits import Limits
from serve.problems import InvalidRequestError, install, problem

PAGE = Path(__file__).parent / "page"
READY_S = 4.0
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Id = Annotated[str, Field(min_length=1, max_length=256)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendationRequest(Request):
    user_id: Id
    k: int = Field(5, ge=1, strict=True)
    """How many; at most serve.max_k."""
    detail: Detail = "standard"
    high_stakes: bool = False
    """Doubt every decision, however sure."""


class ExplanationRequest(Request):
    user_id: Id
    item_id: Id
    detail: Detail = "standard"
    high_stakes: bool = False


class InteractionRequest(Request):
    """Either a rating, from which the label follows, or a label alone."""

    user_id: Id
    item_id: Id
    rating: float | None = Field(None, allow_inf_nan=False)
    label: int | None = Field(None, ge=0, le=1, strict=True)
    timestamp: int | None = Field(None, strict=True)
    """Epoch seconds; the time of arrival where it is missing."""
    event: Id = "feedback"
    key: Id | None = None
    """A request with a known key changes nothing; the header Idempotency-Key does the same."""

    @model_validator(mode="after")
    def _one_opinion(self) -> InteractionRequest:
        if (self.rating is None) == (self.label is None):
            raise ValueError("give either rating or label")
        return self


class InteractionReceipt(BaseModel):
    stored: bool
    """False: the key was known, and nothing changed."""
    interaction: Interaction


class UserRow(BaseModel):
    user_id: str
    history: int


class UserList(BaseModel):
    users: list[UserRow]


class ItemList(BaseModel):
    items: list[Item]


@dataclass(frozen=True)
class Front:
    """What the routes call."""

    orchestrator: Orchestrator
    profile: Callable[[str, int], Awaitable[Profile]]
    users: Callable[[int, str], Awaitable[list[UserSummary]]]
    item: Callable[[str], Awaitable[Item]]
    items: Callable[[int, str], Awaitable[list[Item]]]
    record: Callable[[Interaction, str, str | None], Awaitable[bool]]
    store_version: Callable[[], Awaitable[str | None]]
    healthy: Callable[[], Awaitable[None]]
    config: Config
    versions: dict[str, str]


def make_api(front: Front) -> FastAPI:
    """The application. Errors are problem+json, whatever their cause."""
    serve, data = front.config.serve, front.config.data
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"application/problem+json": {}}}
        for status, text in {
            400: "not JSON",
            404: "unknown id",
            422: "unusable value",
            503: "overloaded",
            504: "late",
        }.items()
    }
    api = FastAPI(title="Rationale", version=front.versions["rationale"], responses=problems)
    install(api)
    api.add_middleware(Limits, at_once=serve.max_ongoing + serve.max_queued)

    @api.post("/v1/recommendations")
    async def recommendations(request: RecommendationRequest) -> Recommendation:
        if request.k > serve.max_k:
            raise InvalidRequestError(f"k: {request.k} is out of range: ask for 1 to {serve.max_k}")
        return await front.orchestrator.recommend(
            request.user_id, request.k, request.detail, request.high_stakes
        )

    @api.post("/v1/explanations")
    async def explanations(request: ExplanationRequest) -> Recommendation:
        return await front.orchestrator.explain(
            request.user_id, request.item_id, request.detail, request.high_stakes
        )

    @api.post("/v1/interactions", status_code=201, responses={200: {"model": InteractionReceipt}})
    async def interactions(
        request: InteractionRequest,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
    ) -> InteractionReceipt:
        low, high = data.rating_range
        if request.rating is not None and not low <= request.rating <= high:
            raise InvalidRequestError(f"rating: {request.rating:g} is out of range: send {low:g} to {high:g}")
        label = request.label if request.rating is None else int(request.rating >= data.positive_rating)
        interaction = Interaction(
            user_id=request.user_id,
            item_id=request.item_id,
            timestamp=int(time.time()) if request.timestamp is None else request.timestamp,
            rating=request.rating,
            label=int(label or 0),
        )
        stored = await front.record(interaction, request.event, request.key or idempotency_key)
        response.status_code = 201 if stored else 200
        return InteractionReceipt(stored=stored, interaction=interaction)

    @api.get("/v1/users")
    async def users(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50, prefix: Annotated[str, Query(max_length=256)] = ""
    ) -> UserList:
        found = await front.users(limit, prefix)
        return UserList(users=[UserRow(user_id=name, history=count) for name, count in found])

    @api.get("/v1/users/{user_id:path}")
    async def user(user_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Profile:
        return await front.profile(user_id, limit)

    @api.get("/v1/items")
    async def items(
        limit: Annotated[int, Query(ge=1, le=1000)] = 20, q: Annotated[str, Query(max_length=256)] = ""
    ) -> ItemList:
        return ItemList(items=await front.items(limit, q))

    @api.get("/v1/items/{item_id:path}")
    async def item(item_id: str) -> Item:
        return await front.item(item_id)

    @api.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "up"}

    @api.get("/readyz", tags=["operation"])
    async def readyz() -> Any:
        """The student has just generated a token, and the store answers."""
        try:
            async with asyncio.timeout(READY_S):
                await front.healthy()
                store = await front.store_version()
        except (RationaleError, TimeoutError) as error:
            return problem(503, f"not ready: {error or f'no token within {READY_S:g} s'}")
        return {"status": "ready", "store": store} | front.versions

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    api.mount("/page", StaticFiles(directory=PAGE))
    return api
