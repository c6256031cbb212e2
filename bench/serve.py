"""The service beside the bare engine, under overload, and idle: in one run, so that ratios mean something.

    python -m bench.serve [--config configs/local.yaml] [--run FOLDER | --bundle FOLDER] [--seconds 60]

*Bare* is the same student in this process given the same calls that a request leads to (decide, write, look
again, decide without the evidence) and nothing else: no agents, no Ray, no HTTP. *Graph* is the whole service
over HTTP. Both have as many CPU threads for the model, start anew and answer other users first, since an
engine keeps prefixes and learns to guess: nothing that is measured was seen before. The bare engine is one,
whatever the number of replicas. Single requests alternate between the two, so that both see the same machine;
at saturation each has `--at-once` requests at work. Overload is open-loop, at twice the graph's own
throughput.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.graph import served
from bench.load import Sample, load
from pipelines.common import open_run, parser
from ray_app.agents.explanation import ExplanationAgent
from ray_app.agents.interface import Team
from ray_app.agents.orchestrator import Orchestrator, Question
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.reflection import ReflectionAgent
from ray_app.agents.retrieval import DataRetrievalAgent
from ray_app.agents.swing import SwingAgent
from ray_app.bundle import Bundle
from ray_app.data.store import Store
from ray_app.engines.student import Scoring, Writing
from ray_app.engines.vllm_student import VllmStudent
from serve.settings import Settings

K = 5
PASSES = 2
"""Over the users at saturation."""
KIND = re.compile(r"ServeReplica:\w+:(\w+)|(Proxy)Actor|Serve(Controller)")
"""A process' deployment or kind, in its title; others are Ray's."""
RAYS_OWN = ("Proxy", "Controller", "Ray")
Calls = list[tuple[str, list[Any]]]


class Recorder:
    """A student that notes what it is asked."""

    def __init__(self, engine: VllmStudent):
        self._engine = engine
        self.calls: Calls = []

    async def score(self, requests: list[Scoring]) -> np.ndarray:
        self.calls.append(("score", requests))
        return await self._engine.score(requests)

    async def write(self, requests: list[Writing]) -> list[str]:
        self.calls.append(("write", requests))
        return await self._engine.write(requests)

    async def healthy(self) -> None:
        await self._engine.healthy()


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--bundle", help="a bundle's folder with store.sqlite beside it, instead of a run")
    arguments.add_argument("--users", type=int, default=24)
    arguments.add_argument("--threads", type=int, help="of the model's arithmetic, in place of the config's")
    arguments.add_argument("--replicas", type=int, help="of the reasoning agent, in place of the config's")
    arguments.add_argument("--at-once", type=int, default=8)
    arguments.add_argument("--seconds", type=float, default=60.0, help="of overload")
    arguments.add_argument("--json")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.bundle:
            source, store = Path(options.bundle), Path(options.bundle).parent / "store.sqlite"
        else:
            _, run = open_run(options)
            source, store = run.stage("publish").local() / "bundle", run.folder.local() / "store.sqlite"
        shutil.copy(store, Path(scratch) / "store.sqlite")
        found = measure(Bundle.open(source), f"sqlite:///{scratch}/store.sqlite", options)
    table = Table("", "", title="The service")
    for name, value in found.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else f"{value:,.2f}")
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


def measure(bundle: Bundle, store: str, options: Any) -> dict[str, Any]:
    users = [name for name, n in zip(bundle.user_codes, np.diff(bundle.histories.indptr), strict=True) if n]
    third = min(options.users, len(users) // 3)
    first, users, traced = np.random.default_rng(0).permutation(users)[: 3 * third].reshape(3, third).tolist()
    serve = bundle.config.serve
    if options.threads:
        serve = serve.model_copy(update={"reasoning_threads": options.threads})
    if options.replicas:
        count = {"reasoning_replicas": options.replicas, "reasoning_max_replicas": options.replicas}
        serve = serve.model_copy(update=count)
    bundle = replace(bundle, config=bundle.config.model_copy(update={"serve": serve}))
    progress = Console(stderr=True)
    progress.log("the service starts")
    with service(bundle, store) as client:
        idle = idle_memory()
        progress.log(f"ready; noting what the engine is asked for {2 * third} users")
        os.environ["OMP_NUM_THREADS"] = str(serve.reasoning_threads)  # read where PyTorch loads: now
        engine = VllmStudent(bundle, bundle.config.serve.engine)
        calls = recorded(bundle, store, engine, [*first, *users])
        engine.close()
        progress.log(f"bare engine beside the graph, one request at a time, {third} users to warm up")
        engine = VllmStudent(bundle, bundle.config.serve.engine)
        bare, graph = [], []
        for user in [*first, *users]:
            began = time.perf_counter()
            asyncio.run(replay(engine, calls[user]))
            bare.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            client.post("/v1/recommendations", json={"user_id": user, "k": K}).raise_for_status()
            graph.append(1000 * (time.perf_counter() - began))
        bare, graph = bare[third:], graph[third:]
        steps = [steps_of(client, user) for user in traced]
        progress.log(f"saturation, {options.at_once} requests at once")
        bare_rate = asyncio.run(saturated(lambda user: replay(engine, calls[user]), users, options.at_once))
        engine.close()
        before = cpu_seconds()
        graph_rate = asyncio.run(
            saturated_over_http(str(client.base_url), users, options.at_once, serve.deadline_s)
        )
        spent = cpu_seconds() - before
        progress.log(f"{bare_rate:.1f} answers/s bare, {graph_rate:.1f} from the graph; then overload")
        samples = asyncio.run(
            load(
                str(client.base_url),
                2 * graph_rate,
                options.seconds,
                lambda n: {"user_id": users[n % len(users)], "k": K},
                serve.deadline_s,
            )
        )
    return {
        "threads": serve.reasoning_threads,
        "reasoning replicas": serve.reasoning_replicas,
        "bare engine, p50 ms": statistics.median(bare),
        "graph, p50 ms": statistics.median(graph),
        "graph over bare, p50 of differences ms": statistics.median(np.subtract(graph, bare).tolist()),
        "bare engine at saturation, answers/s": bare_rate,
        "graph at saturation, answers/s": graph_rate,
        "graph / bare at saturation": graph_rate / bare_rate,
        "CPU ms of an answer at saturation, by process": {
            name: round(1000 * seconds / (PASSES * len(users))) for name, seconds in spent.most_common()
        },
        "reasons / scoring, p50": statistics.median(one["write"] / one["decide"] for one in steps),
        "reflection and explanation / scoring, p50": statistics.median(beyond_reasons(one) for one in steps),
        "p50 ms of an answer in": {
            work: round(statistics.median(one[work] for one in steps), 1)
            for work in sorted(set().union(*steps))
        },
        "memory, idle": idle,
        "overload": overload(samples),
    }


@contextmanager
def service(bundle: Bundle, store: str) -> Iterator[httpx.Client]:
    """The graph on a Ray of its own; ready."""
    from serve.app import vllm_student

    settings = Settings(bundle.config, str(bundle.path), store)
    with (
        served(settings, vllm_student, 6) as address,
        httpx.Client(base_url=address, timeout=120, trust_env=False) as client,
    ):
        while client.get("/readyz").status_code != 200:
            time.sleep(0.2)
        yield client


def recorded(bundle: Bundle, store: str, engine: VllmStudent, users: Sequence[str]) -> dict[str, Calls]:
    """What a request of each user asks the engine, in order; the engine has done it all once then."""
    recorder = Recorder(engine)
    serve = bundle.config.serve
    retrieval, swing = DataRetrievalAgent(bundle, Store(store)), SwingAgent(bundle)
    reasoning, reflection = ReasoningAgent(bundle, recorder), ReflectionAgent(serve, bundle.synthesis)
    team = Team.of(retrieval, swing, reasoning, reflection, ExplanationAgent())
    orchestrator, found = Orchestrator(team, serve, {}), {}
    for user in users:
        recorder.calls = []
        asyncio.run(orchestrator.answer(Question(user_id=user, k=K)))
        found[user] = recorder.calls
    return found


async def replay(engine: VllmStudent, calls: Calls) -> None:
    for method, requests in calls:
        await getattr(engine, method)(requests)


async def saturated(work: Any, users: list[str], at_once: int) -> float:
    """Answers per second with so many at work all the time."""
    waiting = iter(users * PASSES)

    async def one_after_the_other() -> None:
        for user in waiting:
            await work(user)

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return PASSES * len(users) / (time.perf_counter() - began)


async def saturated_over_http(base: str, users: list[str], at_once: int, deadline_s: float) -> float:
    async with httpx.AsyncClient(base_url=base, timeout=deadline_s + 5, trust_env=False) as client:

        async def work(user: str) -> None:
            while True:
                answer = await client.post("/v1/recommendations", json={"user_id": user, "k": K})
                if answer.status_code == 200:
                    return
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))

        return await saturated(work, users, at_once)


def steps_of(client: httpx.Client, user: str) -> Counter[str]:
    """Milliseconds of an answer by kind of work; `rewrite` is what reflection has written anew."""
    answer = client.post("/v1/recommendations", json={"user_id": user, "k": K, "detail": "trail"})
    found: Counter[str] = Counter()
    for step in answer.raise_for_status().json()["trail"]["steps"]:
        work = "rewrite" if step["work"] == "write" and found["write"] else step["work"]
        found[work] += step["ms"]
    return found


def beyond_reasons(ms: Counter[str]) -> float:
    """Time of reflection and explanation over that of scoring all candidates: of all that comes after the
    reasons of the best were written."""
    before = ("fetch", "propose", "assemble", "decide", "gather", "write")
    return sum(value for work, value in ms.items() if work not in before) / ms["decide"]


def idle_memory() -> dict[str, float]:
    """Megabytes that belong to one process alone: of the replicas, and of Ray's own processes."""
    sizes = of_children(
        lambda name: "Ray" if name in RAYS_OWN else "replicas", lambda p: p.memory_full_info().uss
    )
    return {name: round(size / 2**20) for name, size in sizes.items()}


def cpu_seconds() -> Counter[str]:
    """So far, by deployment and kind of process."""
    return of_children(str, lambda process: sum(process.cpu_times()[:2]))


def of_children(group: Callable[[str], str], measure: Callable[[psutil.Process], Any]) -> Counter[str]:
    """A measure of every process of the service, summed by group of a deployment's or process' name."""
    found: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            named = KIND.search(title)
            found[group(named[named.lastindex or 0] if named else "Ray")] += measure(process)
        except psutil.Error:
            continue
    return found


def overload(samples: list[Sample]) -> dict[str, Any]:
    answered = [one.ms for one in samples if one.status == 200]
    refused = [one for one in samples if one.status == 503]
    return {
        "requests": len(samples),
        "by status": {str(k): n for k, n in sorted(Counter(one.status for one in samples).items())},
        "degraded": sum(one.degraded for one in samples),
        "answered p50 ms": round(float(np.percentile(answered, 50))) if answered else None,
        "answered p99 ms": round(float(np.percentile(answered, 99))) if answered else None,
        "refused p99 ms": round(float(np.percentile([o.ms for o in refused], 99))) if refused else None,
        "refused with Retry-After": sum(one.retry_after for one in refused),
    }


if __name__ == "__main__":
    main()
