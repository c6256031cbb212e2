"""The report: complete, self-contained, honest about gaps. All numbers are the test's own."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_app.errors import DataError
from ray_app.evaluation.report import MAX_SAMPLES, render

SCORERS = ["random", "popularity", "item rate", "trees", "student", "student + trees"]


def invented_number(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def invented_entry(value: float, metrics: list[str]) -> dict[str, dict[str, float]]:
    return {metric: invented_number(value + 0.003 * place) for place, metric in enumerate(metrics)}


def invented_metrics() -> dict[str, Any]:
    exposed = ["auc", "uauc", "snapshot_accuracy", "ndcg@5", "ndcg@10", "map@5", "map@10", "uauc_null"]
    full = ["ndcg@5", "ndcg@10", "map@5", "map@10"]
    table = {name: invented_entry(0.51 + 0.05 * place, exposed) for place, name in enumerate(SCORERS)}
    table["student"]["ece"] = {"value": 0.031, "low": None, "high": None}
    difference = {"difference": 0.031, "low": 0.011, "high": 0.05, "p_value": 0.0002, "users": 111}
    return {
        "run": {
            "name": "invented-for-the-test",
            "created": "2001-01-01 00:00",
            "versions": {"rationale": "0.0.0", "ray": "0.0"},
            "settings": {"teacher": "none", "seed": "7"},
        },
        "champion": "student",
        "data": {
            "source": "invented",
            "users": 111,
            "items": 222,
            "interactions": 3333,
            "rejected": 4,
            "splits": {"train": {"rows": 2222, "users": 99, "positive_share": 0.55}, "test": {"rows": 1111}},
        },
        "exposed": {
            "scorers": table,
            "counts": {"rows": 1111, "uauc_users": 88},
            "artefact": {"uauc": 0.67, "null": {"value": 0.69, "low": 0.68, "high": 0.7}},
            "paired": {
                name: dict.fromkeys(("auc", "uauc"), difference) for name in SCORERS if name != "student"
            },
        },
        "catalogue": {
            "scorers": {
                name: invented_entry(0.02 + 0.01 * place, full) for place, name in enumerate(SCORERS)
            },
            "counts": {"users": 60},
        },
        "calibration": {
            "rows": 1111,
            "ece": 0.031,
            "brier": 0.191,
            "brier_constant": 0.248,
            "reliability": [{"p": p, "observed": p**1.1, "rows": 74} for p in np.linspace(0.1, 0.95, 15)],
        },
        "curves": [
            {
                "name": name,
                "points": [
                    {
                        "step": s,
                        "tokens": 8192 * s,
                        "loss": 3 / (s + 1) + 0.4,
                        "valid_auc": 0.78 - 0.2 / (s + 1),
                    }
                    for s in range(0, 40, 4)
                ],
            }
            for name in ("global", "expert-0", "expert-1")
        ],
        "experts": [
            {
                "name": "expert-0",
                "users": 40,
                "rows": 500,
                "valid_users": 31,
                "auc_expert": 0.79,
                "auc_global": 0.78,
                "gain": 0.0123,
                "low": 0.0021,
                "high": 0.0234,
                "doubt": 0.01,
                "better": 0.61,
                "published": True,
            },
            {"name": "expert-1", "users": 30, "rows": 20, "auc_expert": None, "auc_global": 0.71},
        ],
        "ablation": {
            "split": "valid",
            "rows": 1111,
            "seeds": [7, 8],
            "variants": {
                name: {"auc": {"mean": 0.771, "spread": 0.0042, "values": [0.768, 0.774]}}
                for name in ("student", "without experts")
            },
        },
        "teacher": {
            "engine": "evidence writer",
            "rows": 200,
            "traces": 400,
            "accepted": 310,
            "by_round": {"0": {"attempts": 400, "accepted": 280}, "1": {"attempts": 120, "accepted": 30}},
            "by_template": {"plain": {"attempts": 200, "accepted": 160}},
            "rejects": {"wrong_verdict": 80, "duplicate": 10},
        },
        "text": {
            "explanations": 200,
            "meteor": {"meteor": 0.41, "shuffled": 0.3, "lift": 0.11},
            "bleurt": {"computed": False, "reason": "not computed: no BLEURT checkpoint at /nowhere"},
            "coherence": {"verdict_agreement": 0.97, "internal_consistency": 1.0, "order": 0.99},
            "coverage": {"recall": 0.35, "precision": 0.93},
            "groundedness": 0.95,
            "usr": 0.99,
            "fcr": 0.8,
            "div": 0.6,
            "distinct_1": 0.02,
        },
        "reflection": {
            "rows": 412,
            "users": 55,
            "before": {"auc": 0.601, "accuracy": 0.575, "log_loss": 0.6802},
            "after": {"auc": 0.624, "accuracy": 0.59, "log_loss": 0.6711},
            "auc_gain": {"value": 0.023, "low": 0.0071, "high": 0.0389},
            "turned": 61,
            "better": 34,
            "worse": 27,
            "p": 0.443,
            "triggers": {"low_confidence": 380, "conflict": 44},
            "neutral": False,
        },
        "stages": [
            {"stage": stage, "seconds": 10.0 * n, "cpu_seconds": 16.0 * n, "peak_memory_mb": 300.0 * n}
            for n, stage in enumerate(["prepare", "swing", "encode", "reason", "mix", "train", "evaluate"], 1)
        ],
        "system": {
            "latency": {"samples": 100, "p50": 210.0, "p95": 480.0, "p99": 900.0, "max": 950.0},
            "rate_per_s": 2.0,
            "throughput_per_s": 1.9,
            "peak_memory_mb": 900.0,
        },
    }


def invented_samples(count: int) -> list[dict[str, Any]]:
    entry = {
        "id": "e1",
        "kind": "history",
        "item_id": "1",
        "title": "An <Invented> Film (1901)",
        "features": ["Comedy"],
        "shared": ["Comedy"],
        "rating": 5.0,
        "support": 1,
        "sign": 1,
        "weight": 1.0,
    }
    crowd = entry | {
        "id": "e2",
        "kind": "crowd",
        "title": "The Target",
        "rating": 0.62,
        "support": 21,
        "shared": [],
    }
    return [
        {
            "user_id": f"u{n}",
            "title": f"The Target, number {n}",
            "decision": n % 2 == 0,
            "p_yes": 0.73 if n % 2 == 0 else 0.31,
            "label": True,
            "steps": [
                {"text": "( [e1] <r5> <+> ) The user liked [e1], which shares Comedy.", "citations": ["e1"]},
                {"text": "On balance everyone liked it [e2], so yes.", "citations": ["e2"]},
            ],
            "evidence": [entry, crowd],
            "problems": ["e1 is liked, not the opposite"] if n == 1 else [],
        }
        for n in range(count)
    ]


class Page(HTMLParser):
    """Tags with attributes, headings, and whether every tag is closed."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(invented_metrics(), invented_samples(25), tmp_path_factory.mktemp("report")).read_text()


def test_the_page_is_well_formed_and_its_ids_are_unique(page: str):
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_page_needs_nothing_from_outside(page: str):
    parsed = Page(page)
    links = [
        v for _, attrs in parsed.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href") and v
    ]
    beside = "../reason/quality.html"  # the teacher's page, in the same run
    assert all(link.startswith("#") or link == beside for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)


def test_charts_follow_the_theme_and_every_reference_resolves(page: str):
    parsed = Page(page)
    assert page.count("<svg") == 4 + 2 + 1 + 2 + 1
    assert "#010101" not in page
    assert "var(--accent)" in page
    assert "DejaVu Sans" not in page
    references = re.findall(r'(?:xlink:href="|url\()#([\w.-]+)', page)
    assert references
    assert set(references) <= set(parsed.ids)


def test_the_page_shows_the_numbers_it_was_given(page: str):
    assert "invented-for-the-test" in page
    for shown in (".710", "3,333", "310 of 400", "not computed: no BLEURT checkpoint at /nowhere", "480 ms"):
        assert shown in page
    assert page.index("UAUC null") - page.index('<th scope="col">UAUC</th>') < 60


def test_the_headline_table_has_every_scorer_and_only_the_headlines_columns(page: str):
    table = page[page.index("<h2>Headline") :].split("</table>")[0]
    columns = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert columns == ["Scorer", "AUC", "UAUC", "UAUC null", "NDCG@5", "MAP@5", "Snapshot", "ECE"]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == SCORERS


def test_an_experts_gain_has_its_interval_and_says_if_it_is_published(page: str):
    row = re.search(r'<th scope="row">expert-0</th>.*?</tr>', page)
    assert row and ".0123<small>.0021 – .0234</small>" in row.group() and "<td>yes</td>" in row.group()
    row = re.search(r'<th scope="row">expert-1</th>.*?</tr>', page)
    assert row and "<td>yes</td>" not in row.group()


def test_the_ablation_shows_mean_and_spread(page: str):
    assert '<th scope="row">without experts</th><td>.771<small>± .004</small></td>' in page
    assert "mean over seeds 7, 8" in page


def test_titles_replace_citations_and_are_escaped(page: str):
    assert "“An &lt;Invented&gt; Film (1901)”" in page
    assert "[e1]" not in page
    assert "&lt;r5&gt;" not in page
    assert "62\N{NO-BREAK SPACE}% positive of 21 ratings" in page


def test_at_most_twenty_samples_are_shown(page: str):
    assert page.count('<article class="sample">') == MAX_SAMPLES == 20


def test_reflection_is_told_before_and_after(tmp_path: Path):
    metrics = invented_metrics()
    text = render(metrics, [], tmp_path).read_text()
    assert "low confidence 380, conflict 44" in text
    assert "AUC gain .0230 (.0071 – .0389). 61 decisions turned, 34 for the better and 27" in text
    assert "reflection keeps it" not in text
    metrics["reflection"]["neutral"] = True
    assert "reflection keeps it" in render(metrics, [], tmp_path).read_text()


def test_every_gap_is_named_as_not_measured(tmp_path: Path):
    text = render({"run": {"name": "empty"}, "champion": "student"}, [], tmp_path).read_text()
    for heading in re.findall(r"<h2>(.*?)</h2>(.*?)</section>", text, re.DOTALL):
        assert "not measured" in heading[1], heading[0]
    assert len(re.findall("<h2>", text)) == 13


def test_one_missing_measure_is_named_in_its_row(page: str):
    row = re.search(r"<th scope=\"row\">Distinct-2</th><td>(.*?)</td>", page)
    assert row is not None
    assert row.group(1) == "not measured"


def test_metrics_json_is_sorted_and_free_of_nan(tmp_path: Path):
    metrics = invented_metrics()
    metrics["calibration"]["ece"] = float("nan")
    metrics["exposed"]["scorers"]["random"]["auc"]["low"] = np.float64("inf")
    render(metrics, [], tmp_path)
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    tree = json.loads(text)
    assert tree["calibration"]["ece"] is None
    assert list(tree) == sorted(tree)
    assert not list(tmp_path.glob(".partial-*"))


def test_the_same_metrics_give_the_same_page(tmp_path: Path):
    first = render(invented_metrics(), invented_samples(2), tmp_path / "a").read_bytes()
    assert first == render(invented_metrics(), invented_samples(2), tmp_path / "b").read_bytes()


def test_a_key_that_the_layout_does_not_know_is_an_error_in_one_line(tmp_path: Path):
    metrics = invented_metrics()
    metrics["experts"][0]["auk"] = 1.0
    with pytest.raises(DataError, match=r"experts\.0\.auk") as error:
        render(metrics, [], tmp_path)
    assert "\n" not in str(error.value)
