"""The documents' shell commands, and which test runs each of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
MARKS = ("GPU", "cloud", "Cloud", "Kubernetes", "Docker", "Benchmarks")
"""Written in bold before the commands that need it."""
BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

SESSION = (
    "make setup",
    ".venv/bin/python -m pipelines.env python -m pipelines.prepare --config mine/tiny.yaml",
    ".venv/bin/python -m pipelines.env python -m pipelines.prepare --config mine/tiny.yaml"
    " --set data.max_reject_rate=0.5",
    ".venv/bin/python -m pipelines.env python -m pipelines.run --config mine/tiny.yaml"
    " --set data.max_reject_rate=0.5",
    ".venv/bin/python -m pipelines.doctor --config mine/films.yaml",
    "python -m pipelines.swing --interactions ratings.csv --out neighbours",
    "python -m pipelines.swing --interactions sales.parquet --out neighbours"
    " --columns user_id=customer,item_id=sku,strength=quantity --preset alink --normalize sqrt --k 50",
    ".venv/bin/python -m pipelines.env python -m pipelines.run --config configs/local.yaml --until mix",
    "python -m pipelines.reason --config configs/local.yaml",
    "python -m bench.traces --run runs/local",
    ".venv/bin/python -m pipelines.env python -m pipelines.train"
    " --config configs/local.yaml --run runs/local",
    "make run",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 make run",
    "make monitor",
    ".venv/bin/python -m pipelines.monitor table",
    ".venv/bin/python -m pipelines.env python -m pipelines.report"
    " --config configs/local.yaml --run runs/local",
    "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8267",
    ".venv/bin/python -m pipelines.env ray job list",
    ".venv/bin/python -m pipelines.submit --config configs/local.yaml --until swing",
    "make run CONFIG=mine/films.yaml",
    "make run CONFIG=shop.yaml",
    ".venv/bin/python -m pipelines.deploy --back",
    ".venv/bin/python -m pipelines.deploy --config configs/local.yaml --run runs/local",
    'make run CONFIG=configs/local.yaml SET="name=trial reason.fraction=0.1"',
    "make stop",
    'make test-fast ARGS="-k swing"',
    "make fmt",
)
"""What tests/integration/test_docs_session.py does one after another in a copy of the checkout."""

RUN_BY = {
    r"curl -s \S*'?http://127\.0\.0\.1:8000/.*|curl -s '.*": (
        "tests/integration/test_docs_curl.py::test_requests_of_the_documents_are_answered"
    ),
    r"\.venv/bin/python -m pipelines\.plan .*": (
        "tests/unit/test_plan.py::test_every_plan_command_in_the_documents_works"
    ),
    r"\.venv/bin/python -m pipelines\.doctor --config configs/gpu\.yaml": (
        "tests/unit/test_docs_commands.py::test_the_doctor_looks_at_a_machine_for_gpus"
    ),
    r"\.venv/bin/python -m pipelines\.env serve run configs/serve/local\.yaml": (
        "tests/integration/test_docs_session.py::test_the_service_runs_without_the_launcher"
    ),
    r"\.venv/bin/python -m tensorboard\.main --logdir .*": (
        "tests/integration/test_docs_session.py::test_the_learning_curves_have_a_page"
    ),
}
"""Pattern of a command -> the test that runs it."""
THIS_SUITE = re.compile(r"make test(-\w+)?( ARGS='tests/\S+( -s)?')?")
"""Commands that run the tests, so no test runs them."""


def commands(text: str) -> list[tuple[str, str]]:
    """(command, all text of its section before it) of every line of the shell blocks."""
    found = []
    for block in BLOCK.finditer(text):
        before = text[: block.start()]
        section = before[before.rfind("\n## ") + 1 :]
        joined = re.sub(r"\\\n\s*", "", block[2])
        lines = (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines())
        found += [(line, section) for line in lines if line and not line.startswith("#")]
    return found


def is_marked(section: str) -> bool:
    """Whether the section says that its commands need what is not here."""
    return any(f"**{mark}" in section for mark in MARKS)
