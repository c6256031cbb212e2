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
from ray_app.artifacts import Folder
from ray_app.bundle import MANIFEST, REPORT, Bundle
from ray_app.data.store import Store
from ray_app.engines.student import StudentEngine
from ray_app.evaluation.report import render
from serve.ingress import Front, make_api
from serve.keys import Keys
from serve.published import Published
from tests.bundles import LinearStudent, make_bundle, store_url
from tests.reports import invented_metrics, invented_samples


def make_front(
    bundle: Bundle, student: StudentEngine, store: Store | None = None, **changed: object
) -> Front:
    """The front of plain agents on a bundle and its store, or another; `changed` replaces collaborators of
    the team by name."""
    serve = bundle.config.serve
    retrieval = DataRetrievalAgent(bundle, store or Store(store_url(bundle.path)))
    swing = SwingAgent(bundle)
    reasoning, reflection = ReasoningAgent(bundle, student), ReflectionAgent(serve, bundle.synthesis)
    team = Team.of(retrieval, swing, reasoning, reflection, ExplanationAgent())
    versions, folder = {"rationale": "test", "bundle": bundle.version}, Folder(bundle.path)
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
        published=Published.read(folder, folder.read_json(MANIFEST), versions),
    )


def page_server(folder: Path, keys: Keys | None = None, student: StudentEngine | None = None) -> FastAPI:
    """An API whose student is unsure unless told otherwise, so that some answers are doubted, and whose
    bundle has a report."""
    bundle = make_bundle(folder)
    render(invented_metrics(), invented_samples(3), folder / REPORT)
    return make_api(replace(make_front(bundle, student or LinearStudent(scale=0.25)), keys=keys))


if __name__ == "__main__":
    where = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    uvicorn.run(page_server(where), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
