"""Answers kept between runs: an engine in front of another, keyed by content.

The key covers everything that decides an answer: prompt, engine, model and sampling parameters with the
seed and the form. One file per request, written atomically, so any number of processes may share the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from ray_app.artifacts import Folder
from ray_app.engines.interface import Engine, Generation, GenerationRequest


class CachedEngine:
    """Serves what was served before from `folder`, and asks `engine` for the rest. Errors are not kept."""

    def __init__(self, engine: Engine, folder: Folder):
        self._engine = engine
        self._folder = folder
        self.name = engine.name
        self.model = engine.model

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        names = [f"{self._key(request)}.json" for request in requests]
        known = [self._read(name, request.id) for name, request in zip(names, requests, strict=True)]
        missing = [at for at, generation in enumerate(known) if generation is None]
        fresh = self._engine.generate([requests[at] for at in missing]) if missing else []
        answers = dict(zip(missing, fresh, strict=True))
        for at, generation in answers.items():
            if not generation.error:
                self._folder.write(names[at], json.dumps(asdict(generation)).encode())
        return [generation or answers[at] for at, generation in enumerate(known)]

    def close(self) -> None:
        self._engine.close()

    def _read(self, name: str, request_id: str) -> Generation | None:
        if not self._folder.exists(name):
            return None
        return Generation(**(self._folder.read_json(name) | {"id": request_id}))

    def _key(self, request: GenerationRequest) -> str:
        parameters = (request.n, request.temperature, request.max_tokens, request.seed)
        form = [request.form] if request.form else []
        facts = json.dumps([self.name, self.model, request.prompt, parameters, *form])
        return hashlib.sha256(facts.encode()).hexdigest()
