"""The evidence writer: true whatever it concludes, varied, and blind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_contexts import context, contexts, evidence, usual

from ray_app.config import EngineConfig
from ray_app.engines.evidence import STEPS, EvidenceEngine
from ray_app.engines.interface import GenerationRequest, make_engine
from ray_app.engines.phrases import STYLES
from ray_app.errors import EngineError
from ray_app.prompts.parse import parse_answer
from ray_app.prompts.teacher import TEMPLATES
from ray_app.teacher.verification import bare, check

ENGINE = EvidenceEngine(EngineConfig())


def ask(about, **more) -> GenerationRequest:
    facts = {"id": "1/0/0", "prompt": "", "template": "plain", "n": 1, "max_tokens": 320, "seed": 1}
    return GenerationRequest(context=about, **({"temperature": 0.0} | facts | more))


def write(about, **more) -> list[str]:
    (generation,) = ENGINE.generate([ask(about, **more)])
    assert not generation.error
    return generation.texts


def test_there_is_a_style_for_every_template():
    assert tuple(STYLES) == TEMPLATES
    assert len(TEMPLATES) >= 6


@settings(max_examples=150, deadline=None)
@given(
    about=contexts(),
    template=st.sampled_from(TEMPLATES),
    seed=st.integers(0, 2**31 - 1),
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    round=st.integers(0, 2),
)
def test_what_it_writes_always_passes_the_checker(about, template, seed, temperature, round):
    texts = write(about, template=template, seed=seed, temperature=temperature, n=2, round=round)
    for text in texts:
        parsed = parse_answer(text)
        assert parsed.verdict is not None
        result = check(parsed, about, parsed.verdict)
        assert result.reason == "", text
        assert 2 <= len(parsed.steps) <= STEPS + 1
        cited = [name for step in parsed.steps for name in step.citations]
        assert len(cited) == len(set(cited)) == len(parsed.steps) - 1
        assert bare(parsed.steps[-1:], about)
        assert all(len(step.text.split()) <= 36 for step in parsed.steps), text


@given(contexts())
@settings(max_examples=30, deadline=None)
def test_titles_are_never_in_the_text(about):
    assert "Title" not in "".join(write(about))


def test_strong_evidence_decides_and_a_user_who_likes_everything_tips_a_tie():
    liked = evidence("e1", "history", 1, weight=0.9)
    disliked = evidence("e2", "history", -1, weight=0.1)
    assert write(context(liked, disliked))[0].startswith("Answer: Yes")
    assert write(
        context(evidence("e1", "history", 1, weight=0.1), evidence("e2", "history", -1, weight=0.9))
    )[0].startswith("Answer: No")
    tie = (evidence("e1", "history", 1), evidence("e2", "history", -1))
    assert write(context(*tie, like_rate=0.9))[0].startswith("Answer: Yes")
    assert write(context(*tie, like_rate=0.1))[0].startswith("Answer: No")


def test_the_strongest_for_and_against_and_the_view_of_others_are_named():
    (text,) = write(usual())
    cited = [name for step in parse_answer(text).steps for name in step.citations]
    assert "e1" in cited
    assert {"e2", "e4"} & set(cited)
    assert {"e3", "e5"} & set(cited)


def test_two_items_of_similar_users_are_told_and_what_adds_most_comes_before_more_of_the_same():
    about = context(
        evidence("e1", "history", 1, features=["Comedy"], shared=["Comedy"], weight=0.9),
        evidence("e2", "history", 1, features=["Comedy"], shared=["Comedy"], weight=0.8),
        evidence("e3", "history", 1, features=["War", "Drama"], weight=0.1),
        evidence("e4", "neighbour", 1, features=["Comedy"], shared=["Comedy"], weight=0.1),
        evidence("e5", "neighbour", -1, features=["Sci-Fi"], shared=["Sci-Fi"], weight=0.1),
        evidence("e6", "crowd", 1, features=["Comedy", "Sci-Fi"], rating=0.7, support=40),
    )
    (text,) = write(about)
    cited = [name for step in parse_answer(text).steps for name in step.citations]
    assert cited == ["e1", "e3", "e4", "e5", "e6"]


def test_each_kind_of_evidence_is_told_by_those_who_hold_it_with_its_numbers():
    (text,) = write(usual())
    assert text == "\n".join(
        [
            "Answer: Yes",
            "Reasoning:",
            "1. The user loved [e1], a 5 of 5 that shares Comedy but adds Drama.",
            "2. However, the user disliked [e2], a 2 of 5 that shares no feature but has Drama and War.",
            "3. Similar users liked [e3], and it shares Sci-Fi.",
            "4. However, in [e4] similar users disliked the target itself.",
            "5. The wider audience liked the target, 7 of 10 in favour [e5].",
            "6. So the user would enjoy it.",
        ]
    )


def test_the_same_seed_writes_the_same_and_temperature_varies_the_verdict():
    close = context(evidence("e1", "history", 1, weight=0.5), evidence("e2", "history", -1, weight=0.5))
    assert write(close, n=4, temperature=0.7) == write(close, n=4, temperature=0.7)
    verdicts = {text.splitlines()[0] for text in write(close, n=40, temperature=0.7)}
    assert verdicts == {"Answer: Yes", "Answer: No"}
    assert len(set(write(usual(), n=12, temperature=0.7))) >= 10
    assert len(set(write(usual(), n=12))) == 1


def test_a_reflection_weighs_against_its_first_answer_and_may_change_it():
    about = context(
        evidence("e1", "history", 1, features=["War"], weight=0.5),
        evidence("e2", "peers", -1, weight=0.35),
        evidence("e3", "crowd", 1, weight=0.1),
    )
    (first,) = write(about)
    assert first.startswith("Answer: Yes")
    (second,) = write(about, round=1, previous=first)
    assert second.startswith("Answer: No")


def test_a_verdict_that_nothing_speaks_for_is_not_written():
    only = context(evidence("e1", "history", 1), like_rate=0.0)
    first = "Answer: Yes\nReasoning:\n1. [e1]"
    assert write(only, round=2, previous=first)[0].startswith("Answer: Yes")


def test_faults_of_a_request_and_of_its_caller():
    (generation,) = ENGINE.generate([ask(context(evidence("e1", "crowd", 1, support=0)))])
    assert (generation.texts, generation.error) == ([], "the context has no evidence to reason from")
    with pytest.raises(EngineError, match="no template 'haiku'"):
        ENGINE.generate([ask(usual(), template="haiku")])


def test_a_hint_decides_the_verdict_and_reasons_alone_decide_it_anew():
    for hint in (True, False):
        (told,) = ENGINE.generate([ask(usual(), hint=hint)])
        assert told.texts[0].startswith(f"Answer: {'Yes' if hint else 'No'}\n")
    for cited, answer in (("[e1] and [e3]", "Answer: Yes"), ("[e2] and [e4]", "Answer: No")):
        (derived,) = ENGINE.generate([ask(usual(), reasons=(f"It counts that {cited} are there.",))])
        assert derived.texts == [answer]


def test_make_engine_gives_the_default_teacher():
    engine = make_engine(EngineConfig())
    assert (engine.name, engine.model) == ("evidence", "evidence")
    engine.close()
