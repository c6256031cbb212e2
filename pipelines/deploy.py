"""The service on the local cluster: deploy the graph through Serve's REST API, wait for it, ask it.

`serve.app.build({"config": FILE, "run": FOLDER})` makes the application; it runs on the cluster, in a
copy of the code, and stays up when the launcher has gone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from pipelines.cluster import HOST, Cluster, api, free_port, save_state
from pipelines.env import passed_on, state_folder
from ray_app.artifacts import Folder
from ray_app.config import Config
from ray_app.errors import LaunchError
from ray_app.records import Recommendation

APP = "rationale"
BUILDER = "serve.app:build"
READY_S = 240.0
TROUBLED = ("UNHEALTHY", "DEPLOY_FAILED")
APPLICATIONS = "/api/serve/applications/"


def effective_config(root: Path, config: Config) -> Path:
    """A file with every value of `config`, overrides applied, named by its content: replicas may read it
    again at any later time, when another launch has other overrides."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    folder = Folder(state_folder(root) / "configs")
    name = f"{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    folder.write(name, text.encode())
    return Path(folder.path(name))


def deploy(
    root: Path,
    cluster: Cluster,
    made_from: dict[str, str],
    host: str = HOST,
    port: int | None = None,
    say: Callable[[str], Any] = print,
    builder: str = BUILDER,
) -> Cluster:
    """Deploy the application unless the running one was made from the same; return the new state.

    made_from: `config` and `run`, the builder's arguments; `package`, the URI of the code; `bundle`, the
    published bundle's fingerprint.
    """
    if cluster.serve_port is not None:
        if cluster.deployed == made_from and is_ready(cluster):
            return cluster
    else:
        chosen = free_port(port)
        if port is not None and chosen != port:
            say(f"port {port} is taken: the service's port is {chosen}")
        cluster = cluster.model_copy(update={"serve_port": chosen})
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": builder,
        "args": {"config": made_from["config"], "run": made_from["run"]},
        # Serve restarts replicas only if their description changes: a new bundle in the same folder must.
        "runtime_env": {
            "working_dir": made_from["package"],
            "env_vars": {"RATIONALE_BUNDLE": made_from["bundle"]} | passed_on(),
        },
    }
    body = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": cluster.serve_port},
        "applications": [application],
    }
    cluster = cluster.model_copy(update={"deployed": {}})
    save_state(root, cluster)
    with api(root, cluster, timeout_s=60.0) as dashboard:
        answer = dashboard.put(APPLICATIONS, json=body)
    if answer.status_code != 200:
        raise LaunchError(f"Serve refused the application ({answer.status_code}): {_one_line(answer.text)}")
    wait_ready(root, cluster, say=say)
    cluster = cluster.model_copy(update={"deployed": made_from})
    save_state(root, cluster)
    return cluster


def base_url(cluster: Cluster) -> str:
    return f"http://{HOST}:{cluster.serve_port}"


def is_ready(cluster: Cluster) -> bool:
    try:
        return httpx.get(f"{base_url(cluster)}/readyz", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_ready(
    root: Path, cluster: Cluster, limit_s: float = READY_S, say: Callable[[str], Any] = print
) -> None:
    """Wait for 200 from `/readyz`, saying what Serve does meanwhile.

    Raises LaunchError with Serve's own message if the deployment fails or `limit_s` goes by.
    """
    began, said = time.monotonic(), ""
    while True:
        status, message = serve_status(root, cluster)
        if status == "DEPLOY_FAILED":
            raise LaunchError(f"the service could not be deployed: {message}")
        if status == "RUNNING" and is_ready(cluster):
            return
        spent = time.monotonic() - began
        if spent > limit_s:
            raise LaunchError(f"the service is not ready after {limit_s:.0f} s ({status}): {message}")
        if (news := f"{status}: {message}") != said:
            say(f"  {spent:4.0f} s  {news}")
            said = news
        time.sleep(0.5)


def serve_status(root: Path, cluster: Cluster) -> tuple[str, str]:
    """Status of the application as Serve gives it, and its message or its deployments' states."""
    with api(root, cluster) as dashboard:
        answer = dashboard.get(APPLICATIONS)
    if answer.status_code != 200:
        return "UNKNOWN", _one_line(answer.text)
    found = answer.json()["applications"].get(APP)
    if found is None:
        return "NOT_STARTED", ""
    states = [f"{name} {one['status'].lower()}" for name, one in found["deployments"].items()]
    troubles = [one["message"] for one in found["deployments"].values() if one["status"] in TROUBLED]
    return found["status"], _one_line("; ".join(filter(None, [found["message"], *(troubles or states)])))


def _one_line(text: str, limit: int = 600) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"... {line[-limit:]}"


def ask(cluster: Cluster, k: int = 3, detail: str = "standard") -> Recommendation:
    """Recommendations for the first user that the service lists, over HTTP."""
    with httpx.Client(base_url=base_url(cluster), timeout=60.0, trust_env=False) as service:
        users = _checked(service.get("/v1/users", params={"limit": 1})).json()["users"]
        if not users:
            raise LaunchError("the service knows no user: see the prepare stage's counts")
        request = {"user_id": users[0]["user_id"], "k": k, "detail": detail}
        answer = _checked(service.post("/v1/recommendations", json=request))
        return Recommendation.model_validate_json(answer.content)


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        request = f"{answer.request.method} {answer.request.url.path}"
        raise LaunchError(f"{request} answered {answer.status_code}: {_one_line(answer.text)}")
    return answer
