"""A typed client of the HTTP API.

    with Client("http://127.0.0.1:8000") as service:
        answer = service.recommend("3", k=5)
        print(answer.items[0].item.title, answer.items[0].explanation.text)

What is refused for now (429, 503) or cannot be reached is asked again, after the seconds that the service
names: every call here can be repeated without harm, feedback because it carries a key.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from ray_app.agents.interface import Asked, Profile
from ray_app.errors import RationaleError
from ray_app.records import Interaction, Item, Recommendation, Record, TrailStep

AGAIN = (429, 503)
LONGEST_WAIT_S = 30.0
T = TypeVar("T")


class ServiceError(RationaleError):
    """The service answered with a problem (RFC 9457), or not at all: then `status` is 0."""

    def __init__(self, status: int, detail: str, problem: dict[str, Any] | None = None):
        super().__init__(detail)
        self.status, self.detail, self.problem = status, detail, problem or {}


class Receipt(Record):
    """Feedback that is durable."""

    stored: bool
    """False: the key was known, and nothing changed."""
    interaction: Interaction


class UserRow(Record):
    user_id: str
    history: int
    """Number of ratings."""


class Client:
    """Thread-safe. Raises ServiceError for whatever is not an answer."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        http: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """key: an API key, where the service wants one. http: a client to use instead of one of its own."""
        self._http = http or httpx.Client(base_url=url, timeout=timeout_s)
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"
        self._retries, self._sleep = retries, sleep

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def recommend(
        self,
        user_id: str | None = None,
        k: int = 5,
        *,
        liked: Sequence[str] = (),
        disliked: Sequence[str] = (),
        detail: Asked = "standard",
        high_stakes: bool = False,
    ) -> Recommendation:
        """The best k items for a user, or for whoever likes and dislikes these items."""
        body = _asking(user_id, liked, disliked, detail, high_stakes) | {"k": k}
        return self._post("/v1/recommendations", body, Recommendation)

    def explain(
        self,
        user_id: str | None,
        item_id: str,
        *,
        liked: Sequence[str] = (),
        disliked: Sequence[str] = (),
        detail: Asked = "standard",
        high_stakes: bool = False,
    ) -> Recommendation:
        """The decision about one item, with reasons."""
        body = _asking(user_id, liked, disliked, detail, high_stakes) | {"item_id": item_id}
        return self._post("/v1/explanations", body, Recommendation)

    def stream(
        self,
        user_id: str | None = None,
        k: int = 5,
        *,
        liked: Sequence[str] = (),
        disliked: Sequence[str] = (),
        detail: Asked = "standard",
        high_stakes: bool = False,
    ) -> Iterator[TrailStep | Recommendation]:
        """As `recommend`, with each agent's step on the way: when it begins (`ms` None) and when it is done.

        Leaving the iteration ends the work. Not asked again.
        """
        body = _asking(user_id, liked, disliked, detail, high_stakes) | {"k": k}
        request = self._http.build_request(
            "POST", "/v1/recommendations", json=body, headers={"Accept": "text/event-stream"}
        )
        try:
            answer = self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise ServiceError(0, f"{request.url} cannot be reached ({error}): is the service up?") from error
        try:
            if not answer.is_success:
                answer.read()
                raise _problem(answer)
            for name, data in _events(answer.iter_lines()):
                if name == "problem":
                    raise ServiceError(data.get("status", 0), data.get("detail", "the answer failed"), data)
                yield (TrailStep if name == "step" else Recommendation).model_validate(data)
        except httpx.HTTPError as error:
            raise ServiceError(0, f"the answer broke off ({error}): ask again") from error
        finally:
            answer.close()

    def interact(
        self,
        user_id: str,
        item_id: str,
        *,
        rating: float | None = None,
        label: int | None = None,
        timestamp: int | None = None,
        event: str = "feedback",
        key: str | None = None,
    ) -> Receipt:
        """Feedback: a rating or a label. Durable when this returns, and stored once."""
        body = {
            "user_id": user_id,
            "item_id": item_id,
            "rating": rating,
            "label": label,
            "timestamp": timestamp,
            "event": event,
            "key": key or uuid.uuid4().hex,
        }
        return self._post("/v1/interactions", body, Receipt)

    def users(self, prefix: str = "", limit: int = 50) -> list[UserRow]:
        found = self._get("/v1/users", {"prefix": prefix, "limit": limit})["users"]
        return TypeAdapter(list[UserRow]).validate_python(found)

    def user(self, user_id: str, limit: int = 50) -> Profile:
        return Profile.model_validate(self._get(f"/v1/users/{quote(user_id, safe='')}", {"limit": limit}))

    def items(self, text: str = "", limit: int = 20) -> list[Item]:
        """Items whose title contains the text, most rated first."""
        found = self._get("/v1/items", {"q": text, "limit": limit})["items"]
        return TypeAdapter(list[Item]).validate_python(found)

    def item(self, item_id: str) -> Item:
        return Item.model_validate(self._get(f"/v1/items/{quote(item_id, safe='')}", {}))

    def ready(self) -> dict[str, str]:
        """Versions of what is served. Raises ServiceError while it is not ready; not asked again."""
        return self._sent("GET", "/readyz", retries=0).json()

    def _get(self, path: str, query: dict[str, Any]) -> Any:
        return self._sent("GET", path, params=query).json()

    def _post(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        return TypeAdapter(kind).validate_json(self._sent("POST", path, json=body).content)

    def _sent(self, method: str, path: str, retries: int | None = None, **more: Any) -> httpx.Response:
        left = self._retries if retries is None else retries
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx.HTTPError as error:
                if left == 0:
                    raise ServiceError(
                        0, f"{method} {path} was not answered ({error}): is the service up?"
                    ) from error
                wait = 1.0
            else:
                if answer.is_success:
                    return answer
                if left == 0 or answer.status_code not in AGAIN:
                    raise _problem(answer)
                named = answer.headers.get("Retry-After", "")
                wait = float(named) if named.isdecimal() else 1.0
                if wait > LONGEST_WAIT_S:
                    raise _problem(answer)
            left -= 1
            self._sleep(wait)


def _asking(
    user_id: str | None, liked: Sequence[str], disliked: Sequence[str], detail: Asked, high_stakes: bool
) -> dict[str, Any]:
    body: dict[str, Any] = {"liked": list(liked), "disliked": list(disliked)}
    body |= {"detail": detail, "high_stakes": high_stakes}
    return body if user_id is None else body | {"user_id": user_id}


def _problem(answer: httpx.Response) -> ServiceError:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    detail = (
        body.get("detail") or f"{answer.request.method} {answer.request.url} answered {answer.status_code}"
    )
    return ServiceError(answer.status_code, detail, body)


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Server-sent events with one line of JSON each; comments are passed over."""
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
