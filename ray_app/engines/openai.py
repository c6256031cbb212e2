"""Any OpenAI-compatible endpoint (`/chat/completions`): a hosted model or a vLLM server elsewhere.

429 and 5xx answers, timeouts and broken connections are tried again with growing waits. What then still
fails, or is refused for its own sake (400, 413, 422), comes back as the request's error. A refused key, a
missing model, or a server that no request of a batch can reach is fatal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx

from ray_app.config import EngineConfig
from ray_app.engines.interface import Generation, GenerationRequest
from ray_app.errors import EngineError

CONCURRENCY = 16
ATTEMPTS = 4
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
FATAL = {
    401: "refused the key: check {key}",
    403: "refused the key: check {key}",
    404: "knows no such path or model: check base_url and model",
}


class _UnreachableError(Exception):
    """No connection, after all attempts."""


class OpenAIEngine:
    """Engine of kind `openai`; requests of a batch run concurrently."""

    name = "openai"

    def __init__(self, config: EngineConfig, first_wait_s: float = FIRST_WAIT_S):
        if not config.base_url:
            raise EngineError("engine openai has no endpoint: set base_url, such as http://127.0.0.1:8001/v1")
        headers = {}
        if config.api_key_env:
            key = os.environ.get(config.api_key_env)
            if not key:
                raise EngineError(
                    f"environment variable {config.api_key_env} (api_key_env) is not set: put the key there"
                )
            headers["Authorization"] = f"Bearer {key}"
        self.model = config.model
        self._key_name = config.api_key_env or "api_key_env"
        self._url = f"{config.base_url.rstrip('/')}/chat/completions"
        self._first_wait_s = first_wait_s
        self._limit = config.max_model_len
        self._client = httpx.Client(
            headers=headers,
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY),
        )

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            outcomes = list(pool.map(self._serve, requests))
        unreachable = [outcome for outcome in outcomes if isinstance(outcome, _UnreachableError)]
        if requests and len(unreachable) == len(requests):
            raise EngineError(f"{self._url} cannot be reached ({unreachable[0]}): start the server")
        return [
            outcome
            if isinstance(outcome, Generation)
            else Generation(request.id, error=f"unreachable: {outcome}")
            for request, outcome in zip(requests, outcomes, strict=True)
        ]

    def close(self) -> None:
        self._client.close()

    def _serve(self, request: GenerationRequest) -> Generation | _UnreachableError:
        # A token is at least one character of a word: what has too many words never fits, whatever the model.
        words = len(request.prompt.split())
        if words + request.max_tokens > self._limit:
            sizes = f"at least {words} tokens and {request.max_tokens} to write"
            return Generation(
                request.id, error=f"prompt of {sizes} do not fit into max_model_len {self._limit}"
            )
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "n": request.n,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }
        if request.form:
            body["structured_outputs"] = {"regex": request.form}
        fault: Generation | _UnreachableError = Generation(request.id, error="not tried")
        for attempt in range(ATTEMPTS):
            wait = min(MAX_WAIT_S, self._first_wait_s * 2**attempt)
            try:
                response = self._client.post(self._url, json=body)
            except httpx.TimeoutException:
                fault = Generation(request.id, error="timeout")
            except httpx.TransportError as error:
                fault = _UnreachableError(f"{type(error).__name__}: {error}")
            else:
                if response.is_success:
                    return self._read(request, response)
                fault = self._fault(request, response)
                if response.status_code != 429 and response.status_code < 500:
                    return fault
                wait = _retry_after(response, wait)
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait)
        return fault

    def _fault(self, request: GenerationRequest, response: httpx.Response) -> Generation:
        status = response.status_code
        if status in FATAL:
            advice = FATAL[status].format(key=self._key_name)
            raise EngineError(f"{self._url} answered {status} for model {self.model!r}: it {advice}")
        return Generation(request.id, error=f"status {status}: {' '.join(response.text.split())[:200]}")

    def _read(self, request: GenerationRequest, response: httpx.Response) -> Generation:
        try:
            answer: dict[str, Any] = response.json()
            texts = [str(choice["message"]["content"] or "") for choice in answer["choices"]]
        except (ValueError, KeyError, TypeError) as error:
            return Generation(request.id, error=f"not a chat completion ({type(error).__name__})")
        if len(texts) != request.n:
            return Generation(request.id, error=f"{len(texts)} choices instead of {request.n}")
        spent = (answer.get("usage") or {}).get("completion_tokens")
        total = int(spent) if spent is not None else sum(len(text.split()) for text in texts)
        return Generation(request.id, texts, _spread(total, [len(text) for text in texts]))


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    value = response.headers.get("retry-after", "")
    return min(MAX_WAIT_S, float(value)) if value.replace(".", "", 1).isdigit() else otherwise


def _spread(total: int, lengths: list[int]) -> list[int]:
    """Tokens of a request shared out to its texts by length; they add up to the total."""
    marks = [0, *(total * sum(lengths[: n + 1]) // max(1, sum(lengths)) for n in range(len(lengths)))]
    marks[-1] = total
    return [after - before for before, after in pairwise(marks)]
