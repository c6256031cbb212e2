"""The report: complete, self-contained, honest about gaps. All numbers are the test's own."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ray_app.errors import DataError
from ray_app.evaluation.report import MAX_SAMPLES, render
from tests.reports import SCORERS, invented_metrics, invented_samples


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


def test_truth_is_told_by_the_kind_of_evidence(page: str):
    assert "of it, about history" in page and ".990 (free .910)" in page
    assert "1.000 (free –)" in page


def test_at_most_twenty_samples_are_shown(page: str):
    assert page.count('<article class="sample">') == MAX_SAMPLES == 20


def test_reflection_is_told_before_and_after(tmp_path: Path):
    metrics = invented_metrics()
    text = render(metrics, [], tmp_path).read_text()
    assert "low confidence 380, conflict 44" in text
    assert "AUC gain .0230 (.0071 – .0389), accuracy gain .0110 (.0015 – .0205)." in text
    assert "61 decisions turned, 34 for the better and 27" in text
    assert "AUC of each second look alone: history .598, reweighed .631." in text
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
