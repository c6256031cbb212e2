"""The page in headless Chromium against the real API on the synthetic bundle."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from ray_app.engines.student import Scoring
from serve.keys import Keys, make
from tests.browser import Page, chromium
from tests.bundles import LinearStudent
from tests.pages import page_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]
CARDS = "document.querySelectorAll('#cards .card').length"
IDLE = "!document.querySelector('#cards.busy')"


@contextmanager
def served(api: FastAPI) -> Iterator[str]:
    """Its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(page_server(tmp_path_factory.mktemp("bundle"))) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """The page with user u3's recommendations."""
    browser.forget()
    browser.resize(1200, 1000)
    browser.open("about:blank")
    browser.open(f"{address}/#u3")
    browser.until(f"{CARDS} === 5 && {IDLE}")
    yield browser
    assert browser.faults == []


def test_history_and_recommendations_are_shown(page):
    assert page.run("document.querySelectorAll('#events li').length") >= 18
    assert page.run("document.querySelector('#profile').textContent").endswith("age 23")
    assert "reasoning" in page.run("document.querySelector('#timings').textContent")


def test_a_chip_opens_its_evidence(page):
    page.run("document.querySelector('.chip').click()")
    assert page.run("document.querySelector('.fact').hidden") is False
    assert "“" in page.run("document.querySelector('.fact').textContent")
    page.run("document.querySelector('.chip').click()")
    assert page.run("document.querySelector('.fact').hidden") is True


def test_doubts_tell_before_and_after_and_all_four_questions(page):
    assert "→" in page.run("document.querySelector('.doubts summary').textContent")
    assert page.run("document.querySelector('.doubts').querySelectorAll('dt').length") == 4


def test_a_user_is_chosen_by_keyboard(page):
    page.run("document.querySelector('#user').value = ''; document.querySelector('#user').focus()")
    page.type("u12")
    page.until("document.querySelector('#users li')?.textContent.startsWith('u12')")
    page.press("ArrowDown")
    page.press("Enter")
    page.until(f"location.hash === '#u12' && {CARDS} === 5 && {IDLE}")
    assert page.run("document.querySelector('#profile').textContent").endswith("age 32")


def test_feedback_takes_the_item_away_and_into_the_history(page):
    top = page.run("document.querySelector('#cards .card').getAttribute('aria-label')")
    page.run("document.querySelectorAll('#cards .card .acts button')[1].click()")
    page.until(f"document.querySelector('#status').textContent.includes('Noted') && {IDLE}")
    titles = "[...document.querySelectorAll('#cards .card')].map((card) => card.getAttribute('aria-label'))"
    assert top not in page.run(titles)
    assert page.run("document.querySelector('#events li').textContent").startswith(top)


def test_any_title_can_be_asked_about(page):
    page.run("document.querySelector('#item').focus()")
    page.type("drama tale 33")
    page.until("document.querySelectorAll('#items li').length === 1")
    page.press("ArrowDown")
    page.press("Enter")
    page.until("document.querySelector('#why-card .card')")
    assert page.run("document.querySelector('#why-card .card').getAttribute('aria-label')") == "Drama Tale 33"


def test_an_unknown_user_is_told_and_can_be_corrected(page):
    page.provoked.add("404")
    page.run("document.querySelector('#user').value = 'nobody'")
    page.run("document.querySelector('#chooser').requestSubmit()")
    page.until("document.querySelector('#status.error')?.textContent.includes(\"'nobody' does not exist\")")
    assert page.run(CARDS) == 0
    assert page.run("document.querySelector('#history').hidden"), "nobody's history is not u3's"


class Gloomy(LinearStudent):
    """Expects that nobody will like anything."""

    async def score(self, requests: list[Scoring]) -> np.ndarray:
        return await super().score(requests) - 20


def test_a_user_who_will_hardly_like_any_of_it_is_told_so(page, tmp_path):
    said = "document.querySelector('#status').textContent"
    assert page.run(said) == ""
    with served(page_server(tmp_path, student=Gloomy())) as gloomy:
        page.open(f"{gloomy}/#u3")
        page.until(f"{said}.includes('None of these is likely to please') && {IDLE}")
        assert page.run(CARDS) == 5


def test_titles_are_text_not_markup(page):
    page.run("document.querySelector('#item').value = ''; document.querySelector('#item').focus()")
    page.type("markup")
    page.until("document.querySelector('#items li')?.textContent.includes('<b>markup</b>')")
    assert page.run("document.querySelector('#items b')") is None


def test_nothing_is_wider_than_a_phone(page):
    page.resize(360, 740)
    assert page.run("document.documentElement.scrollWidth") <= 360


def test_all_controls_have_names(page):
    unnamed = """[...document.querySelectorAll('input, select, button')].filter((one) =>
        !one.labels?.length && !one.textContent.trim() && !one.getAttribute('aria-label')).length"""
    assert page.run(unnamed) == 0


STEPS = """(() => {
  window.seen = new Set();
  const names = () => [...document.querySelectorAll('#steps li b')].map((one) => one.textContent);
  const look = () => names().forEach((name) => window.seen.add(name));
  new MutationObserver(look).observe(document.querySelector('#steps'), { childList: true, subtree: true });
})()"""


def test_the_steps_of_the_agents_are_shown_while_they_think(page):
    page.run(STEPS)
    page.run("document.querySelector('#chooser').requestSubmit()")
    page.until(f"window.seen.size === 5 && {IDLE} && document.querySelector('#steps').hidden")
    assert page.run("[...window.seen].sort().join(' ')") == (
        "explanation reasoning reflection retrieval swing"
    )


def test_somebody_without_an_account_names_titles_and_is_not_stored(page):
    page.run("document.querySelector('input[value=guest]').click()")
    assert page.run("document.querySelector('#known').hidden")
    for title in ("Drama Tale 33", "Drama Tale 37"):
        page.run("document.querySelector('#pick').focus()")
        page.type(title)
        page.until(
            "!document.querySelector('#found').hidden && "
            f"document.querySelector('#found li').textContent.startsWith('{title}')"
        )
        page.press("ArrowDown")
        page.press("Enter")
        page.until("document.querySelector('#pick').value === ''")
    page.run("document.querySelectorAll('#picks li')[1].querySelector('button').click()")
    assert "not for me" in page.run("document.querySelectorAll('#picks li')[1].textContent")
    before = page.run("fetch('/v1/users?limit=1000').then((one) => one.text())")
    page.run("document.querySelector('#chooser').requestSubmit()")
    page.until(f"document.querySelector('#history').hidden && {CARDS} === 5 && {IDLE}")
    assert "Drama Tale 33" in page.run("document.querySelector('#cards').textContent")
    top = page.run("document.querySelector('#cards .card').getAttribute('aria-label')")
    page.run("document.querySelectorAll('#cards .card .acts button')[0].click()")
    page.until(f"document.querySelector('#status').textContent.includes('Noted') && {IDLE}")
    assert top in page.run("document.querySelector('#picks').textContent")
    assert page.run("fetch('/v1/users?limit=1000').then((one) => one.text())") == before
    page.resize(360, 740)
    assert page.run("document.documentElement.scrollWidth") <= 360


def test_what_a_decision_hangs_on_is_told(page):
    lines = "[...document.querySelectorAll('.hangs')].map((one) => one.textContent)"
    assert all(line.startswith("Without “") for line in page.run(lines))


DRAWN = "[...document.querySelectorAll('figure img')].every((one) => one.complete && one.naturalWidth > 0)"
TEXT = "document.querySelector('#view').textContent"


def test_the_second_view_tells_of_the_run_its_metrics_and_its_plots(page):
    page.run("document.querySelector('nav a:not([aria-current])').click()")
    page.until(f"location.pathname === '/run' && document.querySelectorAll('figure').length && {DRAWN}")
    assert page.run("document.querySelector('nav [aria-current]').textContent") == "The run"
    assert "b1" in page.run(TEXT) and "invented-for-the-test" in page.run(TEXT)
    head = "[...document.querySelectorAll('thead')].map((one) => one.textContent)"
    assert "ScorerAUCUAUC" in page.run(head)[0]
    first = page.run("[...document.querySelectorAll('tbody')][0].querySelector('th').textContent")
    assert first == "student + trees", "the best comes first"
    served = page.run("document.querySelector('.marked').textContent")
    assert served.startswith("student (served).710.690 – .730"), "a value and its interval"
    stages = page.run("[...document.querySelectorAll('table')].at(-1).textContent")
    assert "Peak memory" in stages and "train" in stages
    captions = page.run("[...document.querySelectorAll('figcaption')].map((one) => one.textContent)")
    assert {"Observed against predicted", "Training loss", "Seconds by stage"} <= set(captions)


def test_the_second_view_fits_a_phone_and_its_tables_scroll_by_keyboard(page, address):
    page.resize(360, 740)
    page.open(f"{address}/run")
    page.until(f"document.querySelectorAll('figure').length && {DRAWN}")
    assert page.run("document.documentElement.scrollWidth") <= 360
    wide = "document.querySelector('.wide')"
    assert page.run(f"{wide}.scrollWidth > {wide}.clientWidth && {wide}.tabIndex === 0")
    assert page.run(f"{wide}.getAttribute('role') + {wide}.getAttribute('aria-label')").startswith("region")
    assert page.run("[...document.querySelectorAll('img')].filter((one) => !one.alt).length") == 0


def test_the_report_opens_in_its_own_styles(page, address):
    page.open(f"{address}/run")
    page.until("document.querySelector('a[href=\"/v1/run/report\"]')")
    page.run("document.querySelector('a[href=\"/v1/run/report\"]').click()")
    page.until("location.pathname === '/v1/run/report' && document.querySelector('h1')")
    page.until("getComputedStyle(document.querySelector('h1')).fontWeight === '600'")


def test_the_second_view_asks_for_a_key_and_then_shows_its_plots(browser, tmp_path):
    secret, line = make("page")
    with served(page_server(tmp_path, Keys(line, "the test"))) as address:
        browser.forget()
        browser.provoked.add("401")
        browser.open(f"{address}/run")
        browser.until("!document.querySelector('#door').hidden")
        assert "no API key" in browser.run("document.querySelector('#status').textContent")
        browser.run("document.querySelector('#key').focus()")
        browser.type(secret)
        browser.run("document.querySelector('#door').requestSubmit()")
        browser.until(f"document.querySelectorAll('figure').length && {DRAWN}")
