"""The page and the API on the synthetic bundle, without Ray: `python -m tests.pages PORT [FOLDER]`."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ray_app.agents.explanation import ExplanationAgent
from ray_app.agents.interface import Team
from ray_app.agents.orchestrator import Orchestrator
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.reflection import ReflectionAgent
from ray_app.agents.retrieval import DataRetrievalAgent
from ray_app.agents.swing import SwingAgent
from ray_app.bundle import Bundle
from ray_app.data.store import Store
from ray_app.engines.student import StudentEngine
from serve.ingress import Front, make_api
from tests.bundles import LinearStudent, make_bundle, store_url


def make_front(bundle: Bundle, student: StudentEngine, **changed: object) -> Front:
    """The front of plain agents on a bundle; `changed` replaces collaborators of the team by name."""
    serve = bundle.config.serve
    retrieval, swing = DataRetrievalAgent(bundle, Store(store_url(bundle.path))), SwingAgent(bundle)
    reasoning, reflection = ReasoningAgent(bundle, student), ReflectionAgent(serve, bundle.synthesis)
    team = Team.of(retrieval, swing, reasoning, reflection, ExplanationAgent())
    versions = {"rationale": "test", "bundle": bundle.version}
    return Front(
        orchestrator=Orchestrator(replace(team, **changed), serve, versions),  # pyright: ignore[reportArgumentType]
        profile=retrieval.profile,
        users=retrieval.users,
        item=retrieval.item,
        items=retrieval.items,
        record=retrieval.record,
        store_version=retrieval.version,
        healthy=reasoning.healthy,
        config=bundle.config,
        versions=versions,
    )


def page_server(folder: Path) -> FastAPI:
    """An API whose student is unsure, so that some answers are doubted."""
    return make_api(make_front(make_bundle(folder), LinearStudent(scale=0.25)))


if __name__ == "__main__":
    where = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    uvicorn.run(page_server(where), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
