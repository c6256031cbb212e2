"""The API's description as it is committed: `python -m serve.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from ray_app import __version__
from ray_app.config import Config
from serve.ingress import Front, make_api


def description() -> dict[str, Any]:
    """What /openapi.json of a service with default settings answers."""
    absent: dict[str, Any] = {one.name: None for one in fields(Front)}
    front = Front(**(absent | {"config": Config(), "versions": {"rationale": __version__}}))
    return make_api(front).openapi()


def text() -> str:
    return json.dumps(description(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(text(), end="")
