"""The HTTP API and the page, over an orchestrator: FastAPI without Ray.

POST /v1/recommendations   {user_id, liked, disliked, k, detail, high_stakes}
POST /v1/explanations      {user_id, liked, disliked, item_id, detail, high_stakes}
                           Accept: text/event-stream streams the agents' steps (`serve.events`)
POST /v1/interactions      {user_id, item_id, rating | label, timestamp, event, key}
GET  /v1/users  /v1/users/{id}  /v1/items  /v1/items/{id}
GET  /v1/run  /v1/run/report  /v1/run/plots/{name}
GET  /healthz  /readyz  /openapi.json  /docs  /  /run
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
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

from ray_app.agents.interface import Asked, Profile
from ray_app.agents.orchestrator import Orchestrator, Question
from ray_app.agents.trail import Watch
from ray_app.config import Config
from ray_app.data.store import UserSummary
from ray_app.errors import RationaleError
from ray_app.records import Interaction, Item, Recommendation
from ray_app.telemetry import SERVICE, Telemetry
from serve.events import EVENTS, stream, wants_events
from serve.keys import Keys
from serve.limits import Limits, Pace
from serve.problems import InvalidRequestError, Problem, install, problem
from serve.published import Published, ServedRun, Svg

PAGE = Path(__file__).parent / "page"
READY_S = 4.0
IN_TIME = 0.4
"""Share of the deadline that answers should not need; when they do, fewer requests are let in."""
MAX_OPINIONS = 100
"""Liked and disliked items that a request may name, each."""
COMPONENT = "#/components/schemas/{model}"
STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {EVENTS: {"schema": {"type": "string", "description": "step, answer, problem"}}}}
}
PAGE_HEADERS = {
    # blob: is a plot that was fetched with an API key, which an <img> cannot send.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Id = Annotated[str, Field(min_length=1, max_length=256)]


class Request(BaseModel):
    """A body. Strict: a value of another JSON type is refused, not read as if it were of the right one."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Asking(Request):
    """Who asks: a user, or anybody who names some items."""

    user_id: Id | None = None
    """A known user; or none, or an unknown one, with `liked` or `disliked`."""
    liked: list[Id] = Field([], max_length=MAX_OPINIONS)
    """Items to take as liked just now. They are not stored."""
    disliked: list[Id] = Field([], max_length=MAX_OPINIONS)
    detail: Asked = "standard"
    high_stakes: bool = False
    """Doubt every decision, however sure."""

    @model_validator(mode="after")
    def _somebody(self) -> Asking:
        if self.user_id is None and not self.opinions:
            raise ValueError("give a user_id, or item ids as liked or disliked")
        if both := sorted(set(self.liked) & set(self.disliked)):
            raise ValueError(f"item {both[0]!r} is liked and disliked: leave one out")
        return self

    @property
    def opinions(self) -> dict[str, int]:
        return dict.fromkeys(self.liked, 1) | dict.fromkeys(self.disliked, 0)

    def question(self, **own: Any) -> Question:
        """What the orchestrator is asked; `own` is what only this kind of request names."""
        return Question(
            user_id=self.user_id,
            detail=self.detail,
            high_stakes=self.high_stakes,
            opinions=self.opinions,
            **own,
        )


class RecommendationRequest(Asking):
    k: int = Field(5, ge=1)
    """How many; at most serve.max_k."""


class ExplanationRequest(Asking):
    item_id: Id


class InteractionRequest(Request):
    """Either a rating, from which the label follows, or a label alone."""

    user_id: Id
    item_id: Id
    rating: float | None = Field(None, allow_inf_nan=False)
    label: int | None = Field(None, ge=0, le=1)
    timestamp: int | None = None
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
    published: Published
    keys: Keys | None = None
    """None: whoever reaches the port may ask."""


def make_api(front: Front) -> FastAPI:
    """The application. Errors are problem+json, whatever their cause. Its `state.pace` says who is let in."""
    serve, data = front.config.serve, front.config.data
    schema = {"$ref": COMPONENT.format(model=Problem.__name__)}
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"application/problem+json": {"schema": schema}}}
        for status, text in {
            400: "not JSON",
            401: "no API key, or not a known one",
            403: "the key does not allow it",
            404: "unknown id",
            413: "the body is too large",
            422: "unusable value",
            429: "too many requests with this key",
            500: "a fault of the service",
            503: "overloaded",
            504: "late",
        }.items()
    }
    api = FastAPI(title="Rationale", version=front.versions["rationale"], responses=problems)
    install(api)
    telemetry = Telemetry()
    telemetry.appear(SERVICE)
    pace = Pace(serve.max_ongoing, serve.max_ongoing + serve.max_queued, IN_TIME * serve.deadline_s)
    api.state.pace = pace
    api.add_middleware(Limits, pace=pace, telemetry=telemetry, keys=front.keys)

    async def answer(route: str, question: Question, http: HttpRequest) -> Any:
        async def work(watch: Watch | None = None) -> Recommendation:
            found = await front.orchestrator.answer(question, watch)
            telemetry.answered(route, found)
            return found

        return await (stream(work) if wants_events(http.headers.get("accept")) else work())

    @api.post("/v1/recommendations", response_model=Recommendation, responses=STREAMS)
    async def recommendations(request: RecommendationRequest, http: HttpRequest) -> Any:
        if request.k > serve.max_k:
            raise InvalidRequestError(f"k: {request.k} is out of range: ask for 1 to {serve.max_k}")
        return await answer("recommendations", request.question(k=request.k), http)

    @api.post("/v1/explanations", response_model=Recommendation, responses=STREAMS)
    async def explanations(request: ExplanationRequest, http: HttpRequest) -> Any:
        return await answer("explanations", request.question(item_id=request.item_id), http)

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
        telemetry.add("rationale_feedback", outcome="stored" if stored else "known")
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

    @api.get("/v1/run")
    async def run() -> ServedRun:
        """The bundle that answers, and what was measured of the run that it comes from."""
        return front.published.run

    @api.get("/v1/run/report", response_class=HTMLResponse)
    async def report() -> Any:
        """The whole report, as one page without scripts."""
        return front.published.report()

    @api.get("/v1/run/plots/{name:path}", response_class=Svg)
    async def plot(name: str) -> Any:
        """One of the plots that /v1/run names, in the colours of the viewer's theme."""
        return front.published.plot(name)

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

    @api.get("/run", include_in_schema=False)
    async def run_page() -> FileResponse:
        return FileResponse(PAGE / "run.html", headers=PAGE_HEADERS)

    api.mount("/page", StaticFiles(directory=PAGE))
    api.openapi = lambda: _described(api)
    return api


def _described(api: FastAPI) -> dict[str, Any]:
    """The description, with the two ways to send a key, which a service on loopback may not want."""
    if api.openapi_schema is None:
        found = FastAPI.openapi(api)
        found["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        error = Problem.model_json_schema(ref_template=COMPONENT, mode="serialization")
        found["components"]["schemas"] |= error.pop("$defs") | {Problem.__name__: error}
        found["security"] = [{}, {"bearer": []}, {"key": []}]
    return api.openapi_schema or {}
