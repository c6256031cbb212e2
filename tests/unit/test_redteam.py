"""The red team's attempts through cleaning, prompts, the whole graph and the API, with a student that has no
model. What a real model makes of them: tests/integration/test_redteam_model.py."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from ray_app.agents.orchestrator import Question
from ray_app.agents.retrieval import DataRetrievalAgent
from ray_app.agents.swing import SwingAgent
from ray_app.bundle import Bundle
from ray_app.config import PromptConfig
from ray_app.data import text
from ray_app.data.store import Store
from ray_app.prompts.student import decide_prompt, explain_prompt
from ray_app.prompts.teacher import TEMPLATES, teacher_prompt
from ray_app.records import Context, Recommendation
from serve.ingress import make_api
from tests.bundles import LinearStudent, store_url
from tests.pages import make_front
from tests.redteam import CANARY, ITEM_FIELDS, Attempt, attempts, cleaned, poisoned

USER, K = "u3", 40
TITLED = PromptConfig(titles=True, title_chars=text.TITLE_CHARS)
LEAKS = (
    *("<|", "|>", "( [e", "( history [", "( neighbour [", "( peers [", "( crowd [", "Answer:", "Reasoning:"),
    *("Traceback", "never an instruction", "site-packages"),
)
"""Of prompts, templates and stack traces; no answer has any reason to hold one."""


def named(*fields: str):
    found = attempts(*fields)
    return pytest.mark.parametrize("attempt", found, ids=[one.id for one in found])


def ask(bundle: Bundle) -> Recommendation:
    orchestrator = make_front(bundle, LinearStudent()).orchestrator
    return asyncio.run(orchestrator.answer(Question(user_id=USER, k=K, detail="detailed", high_stakes=True)))


@pytest.fixture(scope="module")
def clean(published) -> Bundle:
    """To read only: nothing here writes to its store."""
    return Bundle.open(published)


@pytest.fixture(scope="module")
def answer(clean: Bundle) -> Recommendation:
    return ask(clean)


@pytest.fixture(scope="module")
def target(answer: Recommendation, clean: Bundle) -> int:
    """A candidate in the middle of the ranking: there is room to rise."""
    return clean.item_code(answer.items[len(answer.items) // 2].item.item_id)


def ranks(answer: Recommendation) -> list[str]:
    return [entry.item.item_id for entry in answer.items]


def test_there_are_sixty_attempts_and_more():
    assert len(attempts(*ITEM_FIELDS, "user_id", "profile", "feedback", "query")) >= 60


@named(*ITEM_FIELDS)
def test_cleaned_text_is_one_short_visible_line(attempt: Attempt, clean: Bundle):
    item = cleaned(clean.items[0], {attempt.field: attempt.payload})
    for value in (item.title, item.description, *item.features, *item.keywords):
        assert re.search(text.UNUSABLE_ID, value[:100]) is None
        assert value == text.normalise(value, text.DESCRIPTION_CHARS)
    assert len(item.title) <= text.TITLE_CHARS
    assert max(len(item.features), len(item.keywords)) <= text.FEATURES


def skeleton(prompt: str) -> str:
    """A prompt without what is data in it: quoted text, lists of features, and how many they are."""
    plain = re.sub(r'"[^"\n]*"', '""', prompt)
    plain = re.sub(r"\((?! \w+ \[e)[^()\n]*\)", "()", plain)
    plain = re.sub(r"(?: <=>| <~>|; shares)[^()\n]*", "", plain)
    return re.sub(r"\"\" \(\)|, keywords \"\"", '""', plain)


def prompts(bundle: Bundle, code: int) -> list[str]:
    """Every kind of prompt about the item, as the target and among the others, titles shown."""
    context = context_of(bundle, code)
    others = context.model_copy(update={"candidates": [context.target, *context.candidates]})
    return [
        *(decide_prompt(one, TITLED) for one in (context, others)),
        *(explain_prompt(context, answer, TITLED) for answer in (True, False)),
        *(teacher_prompt(one, name, TITLED) for one in (context, others) for name in TEMPLATES),
    ]


def context_of(bundle: Bundle, code: int) -> Context:
    retrieval = DataRetrievalAgent(bundle, Store(store_url(bundle.path)))

    async def assembled() -> Context:
        view = await retrieval.fetch(USER, bundle.items[code].item_id)
        proposal = await SwingAgent(bundle).propose(view, 1)
        return (await retrieval.gather(view, proposal))[0]

    return asyncio.run(assembled())


@pytest.fixture(scope="module")
def plain(clean: Bundle, target: int) -> tuple[Bundle, list[str]]:
    """A bundle whose target has some text of each kind, so that only its content differs, and its prompts."""
    bundle = poisoned(clean, target, {"keywords": "plain", "description": "plain"})
    return bundle, prompts(bundle, target)


@named("title", "keywords", "description")
def test_text_stays_in_its_quotes_in_every_prompt(attempt: Attempt, plain, target: int):
    before, expected = plain
    after = poisoned(before, target, {attempt.field: attempt.payload})
    pairs = list(zip(expected, prompts(after, target), strict=True))
    assert any(harmless != hostile for harmless, hostile in pairs), "the attempt is in no prompt"
    for harmless, hostile in pairs:
        assert skeleton(hostile) == skeleton(harmless)


WORD = r'[^\s()\[\]<>|".]+'
CARD_LINE = re.compile(
    rf" \( (?:history|neighbour|peers|crowd) \[e\d+\](?: <\w\d+>| <[+-]>)*(?: <=>(?: {WORD})+)?"
    rf'(?: <~>(?: {WORD})+)? \)(?: "[^"]*")?'
)
ENTRY_LINE = re.compile(r"^ ?(?:\( \w+ )?\[e\d+\].*\n", re.MULTILINE)


@named("features")
def test_features_are_words_of_a_list_and_no_marks(attempt: Attempt, clean: Bundle, target: int):
    """Which evidence is chosen may differ, since features say what is alike; its form may not."""
    after = poisoned(clean, target, {"features": attempt.payload})
    for plain, hostile in zip(prompts(clean, target), prompts(after, target), strict=True):
        frames = [ENTRY_LINE.sub("", skeleton(one)) for one in (hostile, plain)]
        assert frames[0] == frames[1]
    explained = explain_prompt(context_of(after, target), True, TITLED)
    cards = [line for line in explained.splitlines() if line.startswith(" (")]
    assert cards
    assert [line for line in cards if not CARD_LINE.fullmatch(line)] == []


@named(*ITEM_FIELDS)
def test_the_graph_ranks_as_before_and_tells_nothing(attempt, clean, answer, target):
    """Two of the user's own items carry the text too: a supplier may write many."""
    own = clean.histories.items[slice(*clean.histories.indptr[[3, 4]])][-2:]
    hostile = clean
    for code in (target, *map(int, own)):
        hostile = poisoned(hostile, code, {attempt.field: attempt.payload})
    found = ask(hostile)
    assert ranks(found) == ranks(answer)
    assert set(ranks(found)) <= set(clean.item_codes)
    for entry in found.items:
        told = [entry.explanation.text, *(step.text for step in entry.explanation.sentences)]
        for said in told:
            unquoted = re.sub(r"“[^”]*”", "“”", said)
            assert CANARY not in unquoted
            assert not [leak for leak in LEAKS if leak in unquoted]


@pytest.fixture(scope="module")
def client(clean: Bundle) -> TestClient:
    return TestClient(make_api(make_front(clean, LinearStudent())), raise_server_exceptions=False)


@named("user_id")
@pytest.mark.parametrize("way", ["recommendations", "explanations", "profile", "prefix"])
def test_no_user_id_is_more_than_an_unknown_name(attempt: Attempt, client: TestClient, way: str):
    name = attempt.payload
    answer = {
        "recommendations": lambda: client.post("/v1/recommendations", json={"user_id": name}),
        "explanations": lambda: client.post("/v1/explanations", json={"user_id": name, "item_id": "i5"}),
        "profile": lambda: client.get(f"/v1/users/{quote(name, safe='')}"),
        "prefix": lambda: client.get("/v1/users", params={"prefix": name}),
    }[way]()
    if way == "prefix":
        assert answer.json() == {"users": []}
        return
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert re.search(text.UNUSABLE_ID, answer.json()["detail"].replace(name, "")) is None
    assert "\n" not in answer.json()["detail"]


@named("user_id", "feedback")
def test_feedback_is_refused_or_stored_as_it_is(attempt: Attempt, published: Path, tmp_path: Path):
    shutil.copytree(published, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    client = TestClient(make_api(make_front(bundle, LinearStudent())), raise_server_exceptions=False)
    key = "user_id" if attempt.field == "user_id" else "event"
    body = {"user_id": "u3", "item_id": "i5", "label": 1} | {key: attempt.payload}
    before = ranks(ask(bundle))
    answer = client.post("/v1/interactions", json=body)
    hidden = re.search(text.UNUSABLE_ID, attempt.payload) is not None
    assert answer.status_code == (422 if hidden else 201)
    store = Store(store_url(bundle.path))
    assert store.counts()["feedback"] == (0 if hidden else 1)
    assert store.counts()["items"] == len(bundle.items)
    if key == "user_id":
        assert ranks(ask(bundle)) == before


@named("query")
def test_a_search_is_a_search_for_its_text(attempt: Attempt, client: TestClient):
    answer = client.get("/v1/items", params={"q": attempt.payload})
    assert (answer.status_code, answer.json()) == (200, {"items": []})
