"""The service on the local cluster: deploy the graph through Serve's REST API, wait for it, ask it.

    python -m pipelines.deploy [--config FILE] [--run FOLDER]     serve what the run published last
    python -m pipelines.deploy --back                             put the bundle back that was served before

`serve.app.build({"config", "run", "bundle"})` makes the application; it runs on the cluster, in a copy of the
code, and stays up when the launcher has gone. Another bundle comes up as a second application beside the
first, whole and under a route of its own; when it is ready the two change routes, and the old one ends with
what it has at hand. So every answer is made by one bundle, and none is lost. Both need memory meanwhile.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from pipelines.cluster import HOST, Cluster, api, free_port, load_state, save_state
from pipelines.common import open_run, parser
from pipelines.env import ROOT, passed_on, state_folder
from ray_app.artifacts import Folder, Run
from ray_app.bundle import MANIFEST
from ray_app.config import Config
from ray_app.errors import LaunchError, cli
from ray_app.records import Recommendation

APPS = ("rationale", "rationale-b")
"""A swap goes from one name to the other."""
NEXT, LAST = "/next", "/last"
"""Routes of the application that is to come, and of the one that goes."""
BUILDER = "serve.app:build"
READY_S = 240.0
DRAIN_S = 20.0
"""Time in which every proxy learns of a route and the application that goes answers what it had taken, the
default deadline: once it is ended, its agents end before its ingress does."""
TRIES = 3
"""Of the first question: a machine that has just started a service may be too busy for its deadline."""
KEPT = 3
"""Bundles kept of a run."""
TROUBLED = ("UNHEALTHY", "DEPLOY_FAILED")
APPLICATIONS = "/api/serve/applications/"


def keep(run: Run) -> str:
    """Copy the published bundle to `<run>/bundles/<version>`, where it stays when the next one is published;
    returns its URI. The oldest copies go."""
    version, fs = run.done("publish")["counts"]["version"], run.folder.fs
    bundles = run.folder.folder("bundles")
    if not bundles.exists(f"{version}/{MANIFEST}"):
        source, target = run.stage("publish").folder("bundle"), bundles.folder(version)
        names = source.names()
        for name in sorted(names, key=lambda name: name == MANIFEST):
            target.write(name, source.read(name))
    made = {path: fs.modified(f"{path}/{MANIFEST}") for path in fs.ls(bundles.root, detail=False)}
    for path in sorted(made, key=lambda path: made[path])[:-KEPT]:
        fs.rm(path, recursive=True)
    return bundles.path(version)


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

    made_from: `config`, `run` and `bundle`, the builder's arguments; `package`, the URI of the code.
    What was served before goes on if the new application does not come up: LaunchError says why.
    """
    old = cluster.deployed
    if cluster.serve_port is not None:
        if old == made_from and is_ready(cluster):
            return cluster
    else:
        chosen = free_port(port)
        if port is not None and chosen != port:
            say(f"port {port} is taken: the service's port is {chosen}")
        cluster = cluster.model_copy(update={"serve_port": chosen})
        save_state(root, cluster)
    app = APPS[0]
    applications = Applications(root, cluster, host, builder)
    if old and is_ready(cluster):
        app = next(name for name in APPS if name != cluster.app)
        current = (cluster.app, old)
        try:
            applications.put({"/": current, NEXT: (app, made_from)})
            wait_ready(root, cluster, app, NEXT, say=say)
        except LaunchError:
            applications.put({"/": current})
            raise
        applications.put({"/": (app, made_from), LAST: current})
        wait_ready(root, cluster, app, say=say)
        time.sleep(DRAIN_S)
    else:
        save_state(root, cluster.model_copy(update={"deployed": {}}))
    applications.put({"/": (app, made_from)})
    wait_ready(root, cluster, app, say=say)
    cluster = cluster.model_copy(
        update={"app": app, "deployed": made_from, "previous": old if old != made_from else cluster.previous}
    )
    save_state(root, cluster)
    return cluster


class Applications:
    """What Serve is told to run: route -> (name, what it is made from); everything else it ends."""

    def __init__(self, root: Path, cluster: Cluster, host: str, builder: str):
        self._root, self._cluster, self._host, self._builder = root, cluster, host, builder

    def put(self, wanted: dict[str, tuple[str, dict[str, str]]]) -> None:
        body = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": self._host, "port": self._cluster.serve_port},
            "applications": [self._described(route, *one) for route, one in wanted.items()],
        }
        with api(self._root, self._cluster, timeout_s=60.0) as dashboard:
            answer = dashboard.put(APPLICATIONS, json=body)
        if answer.status_code != 200:
            raise LaunchError(
                f"Serve refused the application ({answer.status_code}): {_one_line(answer.text)}"
            )

    def _described(self, route: str, name: str, made_from: dict[str, str]) -> dict[str, Any]:
        return {
            "name": name,
            "route_prefix": route,
            "import_path": self._builder,
            "args": {key: made_from[key] for key in ("config", "run", "bundle")},
            "runtime_env": {"working_dir": made_from["package"], "env_vars": passed_on()},
        }


def back(root: Path, cluster: Cluster, say: Callable[[str], Any] = print, builder: str = BUILDER) -> Cluster:
    """Serve the bundle again that was served before, with the code that runs now; the state says which.

    Raises LaunchError if there was none.
    """
    if not cluster.previous:
        raise LaunchError("no bundle was served before this one: deploy another first")
    # Serve forgets a package of code some time after the last application that used it.
    made_from = cluster.previous | {"package": cluster.deployed["package"]}
    return deploy(root, cluster, made_from, say=say, builder=builder)


def base_url(cluster: Cluster) -> str:
    return f"http://{HOST}:{cluster.serve_port}"


def is_ready(cluster: Cluster, route: str = "/") -> bool:
    try:
        address = f"{base_url(cluster)}{route.rstrip('/')}/readyz"
        return httpx.get(address, timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_ready(
    root: Path,
    cluster: Cluster,
    app: str,
    route: str = "/",
    limit_s: float = READY_S,
    say: Callable[[str], Any] = print,
) -> None:
    """Wait until the application runs and `/readyz` under its route answers 200, saying what Serve does.

    Raises LaunchError with Serve's own message if the deployment fails or `limit_s` goes by.
    """
    began, said = time.monotonic(), ""
    while True:
        status, message = serve_status(root, cluster, app)
        if status == "DEPLOY_FAILED":
            raise LaunchError(f"the service could not be deployed: {message}")
        if status == "RUNNING" and is_ready(cluster, route):
            return
        spent = time.monotonic() - began
        if spent > limit_s:
            raise LaunchError(f"the service is not ready after {limit_s:.0f} s ({status}): {message}")
        if (news := f"{status}: {message}") != said:
            say(f"  {spent:4.0f} s  {news}")
            said = news
        time.sleep(0.5)


def serve_status(root: Path, cluster: Cluster, app: str | None = None) -> tuple[str, str]:
    """Status of an application, by default of the one that is served, as Serve gives it, and its message or
    its deployments' states."""
    with api(root, cluster) as dashboard:
        answer = dashboard.get(APPLICATIONS)
    if answer.status_code != 200:
        return "UNKNOWN", _one_line(answer.text)
    found = answer.json()["applications"].get(app or cluster.app)
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
        for _ in range(TRIES):
            answer = service.post("/v1/recommendations", json=request)
            if answer.status_code not in (503, 504):
                break
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        return Recommendation.model_validate_json(_checked(answer).content)


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        request = f"{answer.request.method} {answer.request.url.path}"
        raise LaunchError(f"{request} answered {answer.status_code}: {_one_line(answer.text)}")
    return answer


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--back", action="store_true", help="put back what was served before")
    options = arguments.parse_args()
    cluster = load_state(ROOT)
    if cluster is None or not cluster.deployed:
        raise LaunchError("no service is up: make run starts one")
    if options.back:
        cluster = back(ROOT, cluster)
    else:
        config, run = open_run(options)
        file = str(effective_config(ROOT, config))
        made_from = cluster.deployed | {"config": file, "run": run.folder.uri, "bundle": keep(run)}
        cluster = deploy(ROOT, cluster, made_from)
    print(f"{base_url(cluster)} serves {cluster.deployed['bundle']}")


if __name__ == "__main__":
    cli(main)
