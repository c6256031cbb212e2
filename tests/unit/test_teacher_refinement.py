"""From rows to traces: blind first, reflection only on failure, given up in the end."""

from dataclasses import replace

import pytest
from teacher_contexts import context, evidence, usual

from ray_app.config import EngineConfig, PromptConfig, ReasonConfig
from ray_app.engines.evidence import EvidenceEngine
from ray_app.engines.interface import Generation
from ray_app.errors import EngineError
from ray_app.prompts.teacher import QUESTIONS, TEMPLATES
from ray_app.teacher.quality import Quality
from ray_app.teacher.refinement import Refiner, Row, derived_seed

CONFIG = ReasonConfig(paths=2, rounds=2, temperature=0.7)


class Recording(EvidenceEngine):
    """The real engine, with its requests kept; `broken` rows are refused."""

    def __init__(self, broken: tuple[str, ...] = ()):
        super().__init__(EngineConfig())
        self.requests = []
        self.broken = broken

    def generate(self, requests):
        self.requests += requests
        answers = super().generate(requests)
        return [
            Generation(answer.id, error="too long") if answer.id.split("/")[0] in self.broken else answer
            for answer in answers
        ]


def refine(rows, config=CONFIG, engine=None, seed=3):
    engine = engine or Recording()
    return Refiner(engine, config, PromptConfig(), seed).run(rows), engine


def one_sided() -> Row:
    """All evidence says Yes, and the user disliked it: no honest trace can be right."""
    about = context(evidence("e1", "history", 1), evidence("e2", "crowd", 1), like_rate=0.9)
    return Row(5, about, False)


def test_blind_traces_and_prompts_do_not_depend_on_the_label():
    yes, no = Row(1, usual(), True), Row(1, usual(), False)
    (first, asked), (second, asked_too) = refine([yes]), refine([no])
    blind = [request for request in asked.requests if request.round == 0]
    assert blind == [request for request in asked_too.requests if request.round == 0]
    assert all(request.hint is None for request in asked_too.requests)

    def texts(outcome):
        return [trace.steps for trace in outcome.traces if trace.mode == "blind"]

    assert texts(first) == texts(second)


def test_an_accepted_row_is_not_reflected_upon():
    strong = context(evidence("e1", "history", 1, weight=5.0), evidence("e2", "history", -1, weight=0.01))
    outcome, engine = refine([Row(1, strong, True)])
    assert {request.round for request in engine.requests} == {0}
    assert any(trace.accepted and trace.mode == "blind" for trace in outcome.traces)


def test_a_failed_row_is_reflected_upon_and_may_be_accepted():
    about = context(
        evidence("e1", "history", 1, features=["War"], weight=0.5),
        evidence("e2", "peers", -1, weight=0.35),
        evidence("e3", "crowd", 1, weight=0.1),
    )
    outcome, engine = refine([Row(1, about, False)], CONFIG.model_copy(update={"temperature": 0.0}))
    reflected = [trace for trace in outcome.traces if trace.mode == "reflected"]
    assert [trace.reason for trace in outcome.traces if trace.mode == "blind"] == ["wrong_verdict"] * 2
    assert any(trace.accepted and trace.rounds == 1 for trace in reflected)
    asked = next(request for request in engine.requests if request.round == 1)
    assert all(question in asked.prompt for question in QUESTIONS)
    assert "> Answer: Yes" in asked.prompt
    assert asked.previous.startswith("Answer: Yes")


def test_a_row_that_never_succeeds_is_given_up_with_its_reasons():
    outcome, engine = refine([one_sided()])
    assert {request.round for request in engine.requests} == {0, 1, 2}
    assert len(outcome.traces) == 6
    assert not any(trace.accepted for trace in outcome.traces)
    assert {trace.reason for trace in outcome.traces} == {"wrong_verdict"}
    assert len({trace.path for trace in outcome.traces}) == 6


def test_rows_do_not_influence_each_other():
    rows = [Row(row_id, usual(), row_id % 2 == 0) for row_id in range(1, 9)]
    together, _ = refine(rows)
    small, _ = refine(rows, CONFIG.model_copy(update={"batch_size": 3}))
    alone = [trace for row in rows for trace in refine([row])[0].traces]

    def ordered(traces):
        return sorted(traces, key=lambda trace: (trace.row_id, trace.path))

    assert ordered(together.traces) == ordered(small.traces) == ordered(alone)


def test_paths_rotate_through_all_templates():
    rows = [Row(row_id, usual(), True) for row_id in range(12)]
    _, engine = refine(rows, CONFIG.model_copy(update={"paths": 8, "rounds": 0}))
    per_row = [request for request in engine.requests if request.id.startswith("4/")]
    assert [request.template for request in per_row] == [TEMPLATES[(4 + i) % 6] for i in range(6)]
    assert [request.n for request in per_row] == [2, 2, 1, 1, 1, 1]


def test_a_repeated_path_is_rejected_as_duplicate():
    class Monotonous(Recording):
        def generate(self, requests):
            return super().generate([replace(request, seed=1, template="plain") for request in requests])

    outcome, _ = refine([Row(1, usual(), True)], engine=Monotonous())
    assert [trace.reason for trace in outcome.traces] == ["", "duplicate"]


def test_a_row_the_engine_cannot_serve_fails_alone():
    outcome, _ = refine([Row(1, usual(), True), Row(2, usual(), True)], engine=Recording(broken=("1",)))
    assert outcome.failed == {1: "too long"}
    assert {trace.row_id for trace in outcome.traces} == {2}


def test_a_dead_engine_is_not_swallowed():
    class Dead(Recording):
        def generate(self, requests):
            raise EngineError("gone")

    with pytest.raises(EngineError, match="gone"):
        refine([one_sided()], engine=Dead())


def test_derived_seeds_differ_and_stay():
    assert derived_seed(7, 1, 0, 0) == derived_seed(7, 1, 0, 0) < 2**31
    assert len({derived_seed(7, row, 0, place) for row in range(50) for place in range(2)}) == 100


def test_quality_counts_rows_paths_and_reasons():
    outcome, _ = refine([Row(1, usual(), True), one_sided()])
    quality = Quality()
    for trace in outcome.traces:
        quality.add(trace, "all" if trace.row_id == 1 else "hard")
    report = quality.report()
    accepted = [trace for trace in outcome.traces if trace.accepted]
    assert (report["rows"], report["acceptance"]) == (2, 0.5)
    assert (report["traces"], report["accepted"]) == (len(outcome.traces), len(accepted))
    assert report["rejects"]["wrong_verdict"] >= 6
    assert report["by_stratum"]["hard"] == {"traces": 6, "accepted": 0, "acceptance": 0.0}
    assert report["tokens"] == sum(trace.tokens for trace in outcome.traces)
    assert 0 < report["distinct_1"] <= 1
    assert 0 <= report["template_balance"] <= 1


def test_quality_of_nothing_is_zeros():
    report = Quality().report()
    assert (report["rows"], report["acceptance"], report["words"]) == (0, 0.0, {})


HINTS = CONFIG.model_copy(update={"hints": True, "rounds": 0})


def test_only_the_hinting_prompt_holds_the_label_and_reasons_must_lead_to_it_unaided():
    about = context(
        evidence("e1", "history", 1, features=["War"], weight=0.9),
        evidence("e2", "history", -1, weight=0.4),
        evidence("e3", "crowd", -1, weight=0.1),
    )
    outcome, engine = refine([Row(1, about, False), one_sided()], HINTS)
    hinting = [request for request in engine.requests if request.hint is not None]
    unaided = [request for request in engine.requests if request.reasons]
    assert {request.id.split("/")[0] for request in hinting} <= {"1", "5"}
    assert all('The right answer is "Answer: No"' in request.prompt for request in hinting)
    for request in engine.requests:
        if request.hint is None:
            assert "right answer" not in request.prompt
    assert all("would" not in reason for request in unaided for reason in request.reasons)
    told = [trace for trace in outcome.traces if trace.mode == "hinted"]
    assert {trace.row_id for trace in told} >= {5}
    assert not any(trace.accepted for trace in told if trace.row_id == 5), "all its evidence says Yes"
    assert {trace.reason for trace in told if trace.row_id == 5} == {"not_rederived"}
    assert all(trace.verdict == trace.label for trace in told)


def test_a_hinted_trace_that_can_be_derived_again_is_accepted_with_its_provenance():
    class Contrary(Recording):
        """Answers blind requests with the opposite."""

        def generate(self, requests):
            answers = super().generate(requests)
            return [
                replace(answer, texts=[text.replace("Answer: Yes", "Answer: No") for text in answer.texts])
                if request.hint is None and not request.reasons
                else answer
                for request, answer in zip(requests, answers, strict=True)
            ]

    strong = context(evidence("e1", "history", 1, weight=5.0), evidence("e2", "history", -1, weight=0.01))
    outcome, engine = refine([Row(1, strong, True)], HINTS, Contrary())
    kept = [trace for trace in outcome.traces if trace.accepted]
    assert {(trace.mode, trace.rounds) for trace in kept} == {("hinted", 1)}
    assert sum(bool(request.reasons) for request in engine.requests) >= len(kept) > 0


def test_a_hinted_text_loses_what_gives_the_hint_away():
    class Chatty(Recording):
        def generate(self, requests):
            return [
                replace(answer, texts=[text.replace("1. ", "1. As I was told, ", 1) for text in answer.texts])
                for answer in super().generate(requests)
            ]

    strong = context(evidence("e1", "history", 1, weight=5.0), evidence("e2", "history", -1, weight=0.01))
    outcome, _ = refine([Row(1, strong, True)], HINTS, Chatty())
    by_mode = {mode: [t for t in outcome.traces if t.mode == mode] for mode in ("blind", "hinted")}
    assert {trace.reason for trace in by_mode["blind"]} == {"gives_away"}
    assert any(trace.accepted for trace in by_mode["hinted"])
    assert not any("told" in step.text for trace in by_mode["hinted"] for step in trace.steps)


def test_a_batch_of_which_nothing_is_served_is_the_engines_fault():
    with pytest.raises(EngineError, match="none of 2 rows could be served; the first failed with: too long"):
        refine([Row(1, usual(), True), Row(2, usual(), True)], engine=Recording(broken=("1", "2")))
    alone, _ = refine([Row(1, usual(), True)], engine=Recording(broken=("1",)))
    assert alone.failed == {1: "too long"}
