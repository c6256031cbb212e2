"""The page in headless Chromium on a catalogue in which every text is an attempt of the red team's."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from ray_app.bundle import Bundle
from serve.ingress import make_api
from tests.browser import Page, chromium
from tests.bundles import LinearStudent, make_bundle
from tests.pages import make_front
from tests.redteam import attempts, cleaned

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]
IDLE = "document.querySelectorAll('#cards .card').length === 5 && !document.querySelector('#cards.busy')"


def hostile_bundle(folder: Path) -> Bundle:
    """Every item has a title, a feature and a description of the red team's, the store's copies too."""
    bundle = make_bundle(folder)
    titles = attempts("title")[-len(bundle.items) :]
    features, descriptions, profiles = (attempts(one) for one in ("features", "description", "profile"))
    items = [
        cleaned(
            item,
            {
                "title": titles[at % len(titles)].payload,
                "features": features[at % len(features)].payload,
                "description": descriptions[at % len(descriptions)].payload,
            },
        )
        for at, item in enumerate(bundle.items)
    ]
    with sqlite3.connect(folder / "store.sqlite") as store:
        for item in items:
            store.execute("UPDATE items SET title = ? WHERE item_id = ?", (item.title, item.item_id))
        profile = json.dumps({f"about {at}": one.payload for at, one in enumerate(profiles)})
        store.execute("UPDATE users SET profile = ?", (profile,))
    store.close()
    return replace(bundle, items=items, gatherer=replace(bundle.gatherer, items=items))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = make_api(make_front(hostile_bundle(tmp_path_factory.mktemp("bundle")), LinearStudent(scale=0.25)))
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    with Page(tmp_path_factory.mktemp("profile")) as page:
        page.open(f"http://127.0.0.1:{port}/#u3")
        page.until(IDLE, limit_s=60)
        yield page
    server.should_exit = True
    thread.join(10)


def elements(page: Page) -> dict[str, int]:
    """How many elements of each kind the page has outside of its own head."""
    return page.run("""(() => { const found = {};
        for (const one of document.body.querySelectorAll('*'))
            found[one.localName] = (found[one.localName] || 0) + 1;
        return found; })()""")


def test_the_history_cards_and_doubts_are_text(page: Page):
    for fold in ("details", ".chip"):
        page.run(f"document.querySelectorAll('{fold}').forEach((one) => one.click())")
    shown = page.run("document.body.textContent")
    assert "<img src=x" in shown or "<script>" in shown
    assert page.run("window.pwned") is None
    assert not {"script", "img", "iframe", "svg", "style", "object"} & set(elements(page))
    links = "[...document.body.querySelectorAll('a')].filter((one) => one.protocol === 'javascript:').length"
    handlers = """[...document.body.querySelectorAll('*')].filter((one) =>
        [...one.attributes].some((a) => a.name.startsWith('on'))).length"""
    assert (page.run(links), page.run(handlers)) == (0, 0)
    assert page.faults == []


def test_suggestions_of_titles_are_text(page: Page):
    before = elements(page)
    page.run("document.querySelector('#item').focus()")
    page.type("pwned")
    page.until("document.querySelectorAll('#items li').length >= 5")
    more = {kind for kind, count in elements(page).items() if count > before.get(kind, 0)}
    assert more <= {"li", "span", "b", "small", "mark"}
    assert page.run("document.querySelectorAll('#items li img, #items li script').length") == 0
    assert page.run("window.pwned") is None
    assert page.faults == []


def test_nothing_covers_the_page_and_no_line_leaves_a_phone(page: Page):
    page.resize(360, 740)
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run("getComputedStyle(document.body).display") != "none"
    page.resize(1200, 1000)
