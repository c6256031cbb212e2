"""The launcher against a real Ray head with token authentication: job, service, end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipelines import cluster as clusters
from pipelines import deploy, env, monitor, submit
from ray_app.config import RayConfig
from ray_app.errors import LaunchError

pytestmark = pytest.mark.slow


JOB = """
import os, sys
import ray

@ray.remote
def where():
    import marker
    return marker.TEXT, os.environ["RAY_AUTH_MODE"], os.environ["TORCH_EXTENSIONS_DIR"]

ray.init(log_to_driver=False)
print("worker saw", *ray.get(where.remote()), flush=True)
if "fail" in sys.argv:
    sys.exit("error: the wheel came off: put it back")
"""

SERVICE = """
from fastapi import FastAPI
from ray import serve

api = FastAPI()

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Toy:
    def __init__(self, run, broken):
        if broken:
            raise RuntimeError("no bundle in " + run)
        self.run = run

    @api.get("/readyz")
    def ready(self):
        return {}

    @api.get("/v1/users")
    def users(self, limit: int):
        return {"users": [{"user_id": "u7", "history": 3}][:limit]}

    @api.post("/v1/recommendations")
    def recommend(self, body: dict):
        versions = {"run": self.run, "asked": f"{body['k']} {body['detail']}"}
        return {"user_id": body["user_id"], "items": [], "versions": versions, "timings_ms": {}}

def build(args):
    return Toy.bind(args["run"], args["config"] == "broken")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout in small: code for a job and a service."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "job.py").write_text(JOB)
    (folder / "marker.py").write_text("TEXT = 'packaged'\n")
    (folder / "toy.py").write_text(textwrap.dedent(SERVICE))
    return folder


@pytest.fixture(scope="module")
def cluster(root):
    """A head of our own; the token's place is process-wide in Ray, so the module's tests share it."""
    before = dict(os.environ)
    os.environ.update(env.environment(root))
    ray = RayConfig(
        num_cpus=2, object_store_mb=100, port=clusters.free_port(), dashboard_port=clusters.free_port()
    )
    running = clusters.ensure(root, ray)
    yield running
    processes = clusters.members(running)
    clusters.stop(root, running)
    os.environ.clear()
    os.environ.update(before)
    assert [one for one in processes if one.is_running() and one.status() != "zombie"] == []
    assert clusters.load_state(root) is None
    assert not Path(running.scratch).exists()


def test_the_dashboard_answers_only_with_the_token(root, cluster):
    assert httpx.get(f"{cluster.dashboard}/api/jobs/").status_code == 401
    wrong = {"Authorization": f"Bearer {'0' * 64}"}
    assert httpx.get(f"{cluster.dashboard}/api/jobs/", headers=wrong).status_code == 403
    forbidden = httpx.post(f"{cluster.dashboard}/api/jobs/", json={"entrypoint": "true"})
    assert forbidden.status_code == 401
    with clusters.api(root, cluster) as dashboard:
        assert dashboard.get("/api/jobs/").json() == []


def test_a_healthy_cluster_is_found_again(root, cluster):
    said = []
    again = clusters.ensure(root, RayConfig.model_validate({}), say=said.append)
    assert (again.head, said) == (cluster.head, [])


def test_a_job_runs_on_a_copy_of_the_code_in_the_one_environment(root, cluster):
    heard = []
    package = submit.run_job(root, cluster.dashboard, f"{sys.executable} job.py", "a", heard.append)
    assert f"worker saw packaged token {root}/.local/torch_extensions" in "".join(heard)
    assert package.startswith("gcs://")


def test_a_failed_job_is_one_line_with_its_last_words(root, cluster):
    with pytest.raises(LaunchError, match="ended as FAILED: the wheel came off: put it back") as caught:
        submit.run_job(root, cluster.dashboard, f"{sys.executable} job.py fail", "a", lambda text: None)
    assert "\n" not in str(caught.value)


def test_a_submitted_job_is_tagged_followed_and_not_started_twice(root, cluster, tmp_path, capsys):
    """`pipelines.run` of this small checkout says its arguments, then waits for a file."""
    (root / "pipelines").mkdir(exist_ok=True)
    (root / "pipelines" / "run.py").write_text(
        "import pathlib, sys, time\n"
        "print('asked for', *sys.argv[1:], flush=True)\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.1)\n"
    )
    (tmp_path / "c.yaml").write_text("name: shop\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "r"), "--tag", "team=search"]
    options = submit.arguments().parse_args([*words, "--detach", "--until", "swing"])
    submit.submit(options, root)
    started = capsys.readouterr().out.split()[1]
    submit.submit(options, root)
    assert f"job {started} is at work" in capsys.readouterr().out
    with pytest.raises(LaunchError, match=f"job {started} is still at work on .*: follow it"):
        submit.run_job(root, cluster.dashboard, "true", str(tmp_path / "r"), lambda text: None)
    (tmp_path / "go").touch()
    options.detach = False
    submit.submit(options, root)
    told = capsys.readouterr().out
    assert "--run " + str(tmp_path / "r") in told
    assert "--until=swing" in told
    assert told.rstrip().endswith("finished")
    job = submit.client(root, cluster.dashboard).get_job_info(started)
    assert job.metadata.items() >= {"run": str(tmp_path / "r"), "config": "shop", "team": "search"}.items()


@pytest.mark.skipif(not shutil.which("prometheus"), reason=f"no prometheus on PATH: {monitor.INSTALL}")
def test_prometheus_finds_the_clusters_nodes_by_itself_and_ends(root, cluster):
    shutil.copytree(Path(__file__).parents[2] / "configs", root / "configs", dirs_exist_ok=True)
    said = []
    taken = monitor.free_port()
    running = monitor.up(root, cluster, taken, say=said.append)
    try:
        assert (said, running.port) == ([], taken)
        assert monitor.up(root, cluster, taken) == running
        assert monitor.ask(running.url, "sum(up)")[0][1] >= 1
        with pytest.raises(LaunchError, match="Prometheus refuses 'sum"):
            monitor.ask(running.url, "sum(")
        figures, alerts = monitor.table(root, running.url)
        assert figures.row_count >= len(list(monitor.queries(root)))
        assert alerts.row_count == 7
        for name in ("targets", "alerts"):
            assert httpx.get(monitor.page(running.url, name), trust_env=False).status_code == 200

    finally:
        assert monitor.down(root)
    assert running.process.live() is None
    assert not monitor.down(root)


@contextmanager
def asked_all_the_time(base: str) -> Iterator[list[int]]:
    """Statuses of requests that four clients send one after the other until the block ends."""
    statuses: list[int] = []
    done = threading.Event()

    def ask():
        with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
            while not done.is_set():
                answer = client.post("/v1/recommendations", json={"user_id": "u7", "k": 1, "detail": "brief"})
                statuses.append(answer.status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            yield statuses
        finally:
            done.set()
        for one in asking:
            one.result()


@pytest.fixture
def interruptible():
    """Ctrl-C raises, whatever the shell that runs the tests (one in the background ignores it)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_the_job(root, cluster):
    def interrupt(text):
        if "\nstarted" in f"\n{text}":
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()

    command = f"{sys.executable} -c 'import time; print(\"started\", flush=True); time.sleep(60)'"
    with pytest.raises(KeyboardInterrupt):
        submit.run_job(root, cluster.dashboard, command, "b", interrupt)
    latest = max(submit.client(root, cluster.dashboard).list_jobs(), key=lambda job: job.start_time)
    assert latest.status.value == "STOPPED"


def test_the_service_stays_up_answers_and_is_deployed_anew_only_for_another_bundle(
    root, cluster, monkeypatch
):
    monkeypatch.setattr(deploy, "DRAIN_S", 2.0)  # the toy answers at once
    package = submit.run_job(root, cluster.dashboard, "true", "b", lambda text: None)
    made_from = {"config": "c.yaml", "run": "/runs/a", "package": package, "bundle": "1"}
    port = clusters.free_port()
    said = []
    served = deploy.deploy(root, cluster, made_from, port=port, say=said.append, builder="toy:build")
    assert said
    assert said[-1].strip()
    assert served.serve_port == port
    answer = deploy.ask(served, k=2)
    assert answer.user_id == "u7"
    assert answer.versions == {"run": "/runs/a", "asked": "2 standard"}

    known = clusters.load_state(root)
    assert known is not None
    said.clear()
    assert deploy.deploy(root, known, made_from, port=port, say=said.append, builder="toy:build") == known
    assert said == []
    newer = made_from | {"bundle": "2", "run": "/runs/b"}
    with asked_all_the_time(deploy.base_url(known)) as statuses:
        served = deploy.deploy(root, known, newer, port=port, say=said.append, builder="toy:build")
        assert deploy.ask(served).versions["run"] == "/runs/b"
    print(f"\nswap under load: {len(statuses)} requests, statuses {set(statuses)}")
    assert set(statuses) == {200}
    assert len(statuses) > 20

    broken = newer | {"config": "broken"}
    with pytest.raises(LaunchError, match=r"could not be deployed.*no bundle in /runs/b"):
        deploy.deploy(root, served, broken, port=port, say=said.append, builder="toy:build")
    recorded = clusters.load_state(root)
    assert recorded is not None
    assert (recorded.deployed, recorded.previous) == (newer, made_from)
    assert deploy.ask(recorded).versions["run"] == "/runs/b"
    returned = deploy.back(root, recorded, say=said.append, builder="toy:build")
    assert deploy.ask(returned).versions["run"] == "/runs/a"
    assert (returned.deployed, returned.previous) == (made_from, newer)
