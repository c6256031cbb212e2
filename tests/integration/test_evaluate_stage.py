"""From a trained student to a measured, published and served one, on the real engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from pipelines import evaluate, publish, reflect
from pipelines.assemble import assemble
from pipelines.report import write_report
from ray_app.agents.synthesis import MIN_ROWS, NEUTRAL
from ray_app.artifacts import Folder, Run, execute
from ray_app.bundle import MANIFEST, Bundle
from ray_app.config import Config, validate
from ray_app.data.store import Store
from ray_app.engines.phrasebook import Proposer
from ray_app.engines.student import Scoring, Writing
from ray_app.engines.vllm_student import VllmStudent
from ray_app.errors import EngineError, PromptTooLongError
from ray_app.prompts.cards import evidence_card
from ray_app.prompts.grammar import reasoning_grammar
from ray_app.prompts.parse import parse_reasoning
from ray_app.prompts.student import decide_prompt, explain_prompt
from ray_app.records import Context
from serve.published import Published
from tests.conftest import SmallRun
from tests.pages import make_front

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def finished(trained_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Run]:
    """A run through all stages; WordNet comes from the machine's cache."""
    root = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(trained_run.run.folder.root, root)
    tree = trained_run.config.model_dump()
    tree["data"]["cache"] = "~/.cache/rationale"
    config, run = validate(tree, "small"), Run(root)
    for stage in (reflect, evaluate, publish):
        execute(run, stage.spec(config, run))
    return config, run


@pytest.fixture(scope="module")
def bundle(finished: tuple[Config, Run]) -> Bundle:
    """The published bundle with its store beside it, where `make_front` looks."""
    run = finished[1]
    folder = run.stage("publish").local() / "bundle"
    shutil.copy(run.folder.local() / "store.sqlite", folder / "store.sqlite")
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def student(bundle: Bundle):
    engine = VllmStudent(bundle, bundle.config.serve.engine)
    yield engine
    engine.close()


def test_the_engine_scores_what_training_scored(finished, bundle, student):
    config, run = finished
    valid = pl.read_parquet(run.stage("mix").path("valid.parquet"))
    encode = run.stage("encode").local()
    vectors = {name: np.load(encode / f"{name}.npy") for name in ("user", "item", "pair")}
    for adapter in ("global", *bundle.experts):
        requests = [
            Scoring(
                decide_prompt(Context.model_validate_json(context), config.prompt),
                {name: values[row] for name, values in vectors.items()},
                adapter,
            )
            for row, context in zip(valid["row_id"], valid["context"], strict=True)
        ]
        trained = np.load(run.stage("train").local() / adapter / "valid_logits.npy")
        assert student.run(student.score(requests)) == pytest.approx(trained, abs=2e-4)


def test_what_prompts_have_in_common_is_computed_once_and_never_lent_to_another_user(finished, student):
    """Two users with the same words in their prompts and other vectors, asked about four items each."""
    encode = finished[1].stage("encode").local()
    vectors = {name: np.load(encode / f"{name}.npy") for name in ("user", "item", "pair")}
    users = [vectors["user"][0], vectors["user"][-1]]
    assert np.ptp(np.stack(users), axis=0).max() > 0.1
    history = "".join(f" [h{place}] <r4> <+> ( Drama )\n" for place in range(1, 9))
    words = f"User: <|user|> <p6> <n4>\nHistory:\n{history}Target: <|item|> <|pair|> <p4> <n5>\nAnswer:"
    requests = [
        Scoring(words, {"user": user, "item": vectors["item"][at], "pair": vectors["pair"][at]}, "global")
        for at in range(4)
        for user in users
    ]
    alone = []
    for request in requests:
        student._engine.reset_prefix_cache()
        alone.append(student.run(student.score([request]))[0])
    student._engine.reset_prefix_cache()
    with patch.object(student._telemetry, "add", wraps=student._telemetry.add) as counted:
        assert student.run(student.score(requests)) == pytest.approx(alone, abs=1e-4)
    tokens = {call.kwargs["kind"]: call.args[1] for call in counted.mock_calls if "kind" in call.kwargs}
    common = len(student.tokenizer(words[: words.index("<|item|>")]).input_ids) // 32 * 32
    assert tokens["cached"] == 6 * common > 0, "all but each user's first prompt find its beginning"
    assert len({round(float(logit), 3) for logit in alone}) == len(alone), "the vectors count"


def test_guesses_change_no_text_and_no_score_beside_it(finished, bundle, student):
    config, run = finished
    valid = pl.read_parquet(run.stage("mix").path("valid.parquet"))
    encode = run.stage("encode").local()
    vectors = {name: np.load(encode / f"{name}.npy") for name in ("user", "item", "pair")}
    requests, asked = [], []
    for row, text in zip(valid["row_id"], valid["context"], strict=True):
        context = Context.model_validate_json(text)
        if not context.evidence or len(requests) == 8:
            continue
        own = {name: values[row] for name, values in vectors.items()}
        asked.append((context, own))
        for answer in (True, False):
            prompt, grammar = (
                explain_prompt(context, answer, config.prompt),
                reasoning_grammar(context, answer),
            )
            requests.append(Writing(prompt, own, "global", grammar, 120))
    guessed = student.run(student.write(requests))
    with patch.object(Proposer, "propose", lambda self, sampled, *_, **__: [[] for _ in sampled]):
        assert student.run(student.write(requests)) == guessed
    scoring = [Scoring(decide_prompt(context, config.prompt), own, "global") for context, own in asked]
    alone = student.run(student.score(scoring))

    async def together() -> list[np.ndarray]:
        beside = asyncio.gather(*(student.score(scoring) for _ in range(20)))
        await student.write(requests)
        return await beside

    for scores in student.run(together()):
        assert scores == pytest.approx(alone, abs=1e-4)

    async def watched() -> list[str]:
        writing = asyncio.ensure_future(student.write(requests))
        while not writing.done():
            await student.healthy()
        return await writing

    # A health check that was sampled at random spoilt texts beside it in seven of ten such rounds.
    for _ in range(5):
        assert student.run(watched()) == guessed


def test_only_experts_that_beat_the_global_adapter_enter_a_bundle(trained_run, tmp_path):
    shutil.copytree(trained_run.run.folder.root, tmp_path / "run")
    run = Run(tmp_path / "run")
    rows = run.stage("train").read_json("experts.json")
    assert all(row["published"] == (row["doubt"] <= 0.1) for row in rows)
    rows = [row | {"published": row["expert"] == "expert-1"} for row in rows]
    run.stage("train").write_json("experts.json", rows)
    assemble(trained_run.config, run, tmp_path / "bundle", "test", "v1")
    opened = Bundle.open(tmp_path / "bundle")
    assert opened.experts == ["expert-1"]
    assert sorted(path.name for path in (tmp_path / "bundle" / "adapters").iterdir()) == [
        "expert-1@v1", "global@v1",
    ]  # fmt: skip
    for vector in opened.clusters.centres / opened.clusters.scale + opened.clusters.mean:
        assert set(opened.choice(vector).weights) <= {"expert-1", "global"}


def test_evaluate_measures_the_student_beside_its_rivals(finished):
    metrics = finished[1].stage("evaluate").read_json("metrics.json")
    exposed, catalogue = metrics["exposed"]["scorers"], metrics["catalogue"]["scorers"]
    plain = {"student", "random", "popularity", "item rate", "Swing", "cosine", "EASE"}
    assert plain | {"logistic regression", "trees"} == set(exposed)
    assert plain | {"student alone", "trend"} == set(catalogue)
    assert {name for name, entry in exposed.items() if "ece" in entry} == {
        "student", "item rate", "logistic regression", "trees",
    }  # fmt: skip
    scores = pl.read_parquet(finished[1].stage("evaluate").path("scores.parquet"))
    auc = roc_auc_score(scores["label"], scores["score_student"])
    assert exposed["student"]["auc"]["value"] == pytest.approx(auc)
    assert exposed["student"]["auc"]["low"] <= auc <= exposed["student"]["auc"]["high"]
    text = metrics["text"]
    assert text["bleurt"]["computed"] is False
    assert text["meteor"]["lift"] == pytest.approx(text["meteor"]["meteor"] - text["meteor"]["shuffled"])


def test_reflection_is_fitted_on_validation_rows_and_judged_on_rows_it_has_not_seen(finished, bundle):
    run = finished[1]
    fitted, measured = (
        run.stage("reflect").read_json("report.json"),
        run.stage("evaluate").read_json("metrics.json")["reflection"],
    )
    neutral = bundle.synthesis == NEUTRAL
    assert fitted["neutral"] == measured["neutral"] == neutral
    assert neutral or fitted["rows"] >= MIN_ROWS, "too few rows to fit anything"
    for report in (fitted, measured):
        assert 0 < report["rows"] <= 120
        assert sum(report["triggers"].values()) >= report["rows"]
    assert (measured["before"] == measured["after"]) == neutral
    assert measured["turned"] == 0 or not neutral


def test_publish_lays_out_the_bundle_and_fills_the_store(finished, bundle):
    config, run = finished
    counts = run.done("publish")["counts"]
    assert bundle.version == counts["version"] == publish.version_of(run)
    assert len(bundle.histories.items) == 3000
    store = Store(publish.store_url(config, run))
    try:
        assert store.counts() == {name: counts[name] for name in store.counts()}
    finally:
        store.close()


def test_the_report_is_drawn_from_what_the_stages_left(finished):
    page = write_report(*finished)
    assert page.name == "report.html"
    written = json.loads((page.parent / "metrics.json").read_text())
    assert [row["stage"] for row in written["stages"]] == [
        "prepare", "swing", "encode", "reason", "mix", "train", "reflect", "evaluate", "publish",
    ]  # fmt: skip
    assert "60% of the score" in written["run"]["settings"]["student"]
    assert written["teacher"]["accepted"] > 0
    assert len(written["experts"]) >= 3


def test_the_published_bundle_tells_of_its_run(finished, bundle):
    facts = json.loads((bundle.path / MANIFEST).read_bytes())
    published = Published.read(Folder(bundle.path), facts, {"bundle": bundle.version})
    report = published.run.report
    assert report is not None and report.stages is not None and report.exposed is not None
    assert report.stages[-1].stage == "evaluate", "what publishing costs is not known while it is at work"
    assert report.champion in report.exposed.scorers
    assert {plot.name for plot in report.plots} == set(published.plots)
    assert published.page is not None and b"</html>" in published.page


def test_a_user_gets_explained_recommendations_from_the_real_student(bundle, student):
    front = make_front(bundle, student)
    answer = asyncio.run(front.orchestrator.recommend("u1", 3, "standard", True))
    assert len(answer.items) == 3
    assert not answer.degraded
    seen = {bundle.items[code].item_id for code in bundle.history("u1", []).items}
    for entry in answer.items:
        assert entry.item.item_id not in seen
        assert 0 < entry.score < 1
        assert entry.explanation.coherent
        assert entry.reflection is not None
        assert "high_stakes" in entry.reflection.triggers
        cited = {name for step in entry.explanation.sentences for name in step.citations}
        assert cited <= {fact.id for fact in entry.evidence}


def test_forced_cards_are_true_copies_of_the_evidence(bundle, student):
    front = make_front(bundle, student)
    answer = asyncio.run(front.orchestrator.explain("u2", "i7", "detailed"))
    entry = answer.items[0]
    context = Context(
        user_id="u2",
        timestamp=bundle.cut + 1,
        history_count=3,
        like_rate=0.5,
        target=entry.item,
        profile=[],
        evidence=entry.evidence,
    )
    vectors = {name: np.zeros(size, np.float32) for name, size in student.widths.items()}
    request = Writing(
        explain_prompt(context, True, bundle.config.prompt),
        vectors,
        "global",
        reasoning_grammar(context, True),
        200,
    )
    written = parse_reasoning(student.run(student.write([request]))[0])
    allowed = {evidence_card(fact, True)[2:-2] for fact in entry.evidence}
    assert written.steps
    # The budget may end inside the last card or sentence.
    assert {card for card, _ in written.steps[:-1]} <= allowed


def test_an_engine_that_cannot_answer_says_why(bundle):
    engine = VllmStudent(bundle, bundle.config.serve.engine)
    vectors = {name: np.zeros(size, np.float32) for name, size in engine.widths.items()}
    with pytest.raises(EngineError, match="no adapter 'expert-9': the bundle has"):
        engine.run(engine.score([Scoring("User:", vectors, "expert-9")]))
    with pytest.raises(PromptTooLongError, match="max_model_len is 768"):
        engine.run(engine.score([Scoring("User: " * 900, vectors, "global")]))
    engine.close()
    with pytest.raises(EngineError, match="stopped: closed"):
        engine.run(engine.score([Scoring("User:", vectors, "global")]))


def test_scratch_is_gone(finished):
    assert not list(Path(finished[1].folder.root).rglob("*.partial"))
