"""The documents' commands as they stand, one after another, in a copy of this checkout with small data.

Only ports are put in, so that nothing else on the machine is met, and `configs/local.yaml` is a small one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import polars as pl
import pytest
import yaml

from pipelines.cluster import free_port
from tests.docs import ROOT, SESSION
from tests.runs import small_config, write_inputs

pytestmark = pytest.mark.heavy
LIMIT_S = 1800
REFUSED = {
    "pipelines.prepare --config mine/tiny.yaml": "3 of 8 rows rejected",
    "pipelines.run --config mine/tiny.yaml --set data.max_reject_rate=0.5": (
        "0 training rows have 3 earlier interactions"
    ),
}
"""End of a command -> what it says, where the document shows it end with an error."""
BLOCK = re.compile(r"`(mine/\S+)`\n```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {"8000": free_port(), "8267": free_port(), "6006": free_port()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("docs") / "rationale"
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in filter(None, tracked.split("\0")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    (root / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(ROOT / ".local" / "torch_extensions", root / ".local" / "torch_extensions")
    write_data(root, ports)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    yield root
    give(root, "make stop", ports)


def write_data(root: Path, ports: dict[str, int]) -> None:
    """The worked example of data.md, and small data under the names that the documents use."""
    mine = root / "mine"
    mine.mkdir()
    for name, text in BLOCK.findall((ROOT / "docs" / "data.md").read_text()):
        (root / name).write_text(text)
    write_inputs(mine)
    tree = small_config(mine).model_dump(exclude_unset=True)
    tree["data"]["cache"] = str(root.parent / "cache")
    tree["serve"] = {"port": ports["8000"]}
    tree["ray"]["dashboard_port"], tree["ray"]["port"] = ports["8267"], free_port()
    tree["reason"]["fraction"] = 0.1
    for file, name in (("configs/local.yaml", "local"), ("mine/films.yaml", "films"), ("shop.yaml", "films")):
        (root / file).write_text(yaml.safe_dump(tree | {"name": name}))
    acts = pl.read_csv(mine / "interactions.csv")
    acts.select("user_id", "item_id").write_csv(root / "ratings.csv")
    sales = acts.select(
        pl.col("user_id").alias("customer"), pl.col("item_id").alias("sku"), quantity="rating"
    )
    sales.write_parquet(root / "sales.parquet")


def give(root: Path, command: str, ports: dict[str, int]) -> subprocess.CompletedProcess[str]:
    for told, port in ports.items():
        command = command.replace(f":{told}", f":{port}")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = mine | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )


def test_the_documents_commands_do_what_they_say(checkout: Path, ports: dict[str, int]):
    exported = ""
    for command in SESSION:
        if command.startswith("export "):
            exported = f"{command} && "
            continue
        began = time.monotonic()
        done = give(checkout, exported + command, ports)
        exported = ""
        print(f"{done.returncode} {time.monotonic() - began:6.1f} s  {command}", flush=True)
        said = next((said for end, said in REFUSED.items() if command.endswith(end)), "")
        told = f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == (2 if said else 0), told
        assert said in done.stderr, told


def test_the_service_runs_without_the_launcher(checkout: Path, ports: dict[str, int]):
    """After the session, whose run has published."""
    file = checkout / "configs" / "serve" / "local.yaml"
    file.write_text(file.read_text().replace("port: 8000", f"port: {ports['8000']}"))
    command = ".venv/bin/python -m pipelines.env serve run configs/serve/local.yaml"
    with running(checkout, command, f"http://127.0.0.1:{ports['8000']}/readyz", 600):
        pass


def test_the_learning_curves_have_a_page(checkout: Path, ports: dict[str, int]):
    """After the session, whose run has trained."""
    command = (
        f".venv/bin/python -m tensorboard.main --logdir runs/local/train/tensorboard --port {ports['6006']}"
    )
    with running(checkout, command, f"http://127.0.0.1:{ports['6006']}/data/runs", 180) as answer:
        assert "global" in answer.json()


@contextmanager
def running(root: Path, command: str, url: str, limit_s: float) -> Iterator[httpx.Response]:
    """What `url` answers first with 200 while a command runs; ends the command."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command.split(), cwd=root, env=mine, stderr=subprocess.DEVNULL)
    try:
        yield first_answer(process, url, time.monotonic() + limit_s)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def first_answer(process: subprocess.Popen[bytes], url: str, deadline: float) -> httpx.Response:
    while True:
        try:
            answer = httpx.get(url, timeout=10, trust_env=False)
            if answer.status_code == 200:
                return answer
        except httpx.HTTPError:
            pass  # not up yet
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"nothing at {url}"
        time.sleep(1)
