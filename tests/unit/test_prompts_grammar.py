"""What the student may write: every true trace fits the grammar, no altered fact does."""

import numpy as np
import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_contexts import FEATURES, context, contexts, evidence, usual

from ray_app.config import EngineConfig
from ray_app.engines.evidence import EvidenceEngine
from ray_app.engines.interface import GenerationRequest
from ray_app.prompts.cards import AGAINST, conclusion_card, evidence_card
from ray_app.prompts.grammar import reasoning_grammar
from ray_app.prompts.parse import parse_answer, parse_reasoning
from ray_app.prompts.student import reasoning_target
from ray_app.prompts.teacher import TEMPLATES
from ray_app.records import Context, Trace


def trace(about: Context, template: str, seed: int) -> Trace:
    facts = {"id": "1", "prompt": "", "n": 1, "max_tokens": 320, "temperature": 0.7}
    request = GenerationRequest(context=about, template=template, seed=seed, **facts)
    (generation,) = EvidenceEngine(EngineConfig()).generate([request])
    parsed = parse_answer(generation.texts[0])
    assert parsed.verdict is not None
    return Trace(
        row_id=1,
        path=0,
        steps=parsed.steps,
        verdict=parsed.verdict,
        label=parsed.verdict,
        mode="blind",
        rounds=0,
        template=template,
        engine="evidence",
        model="evidence",
        tokens=1,
        accepted=True,
    )


COMPILER = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([]), cache_enabled=False)


def accepts(about: Context, answer: bool | None, text: str) -> bool:
    compiled = COMPILER.compile_grammar(reasoning_grammar(about, answer))
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


@settings(max_examples=120, deadline=None)
@given(contexts(), st.sampled_from(TEMPLATES), st.integers(0, 2**31 - 1))
def test_every_trace_of_the_evidence_writer_fits_and_only_with_its_own_answer(about, template, seed):
    made = trace(about, template, seed)
    text = reasoning_target(made, about)
    assert accepts(about, made.verdict, text), text
    assert not accepts(about, not made.verdict, text)


@settings(max_examples=60, deadline=None)
@given(contexts(), st.sampled_from(TEMPLATES), st.integers(0, 2**31 - 1))
def test_reasons_that_decide_may_come_to_either_answer_and_mark_nothing_as_against_it(about, template, seed):
    made = trace(about, template, seed)
    text = reasoning_target(made, about, told=False)
    assert AGAINST not in text
    for verdict in (True, False):
        other = text.replace(conclusion_card(made.verdict), conclusion_card(verdict))
        assert accepts(about, None, other), other
    marked = reasoning_target(made, about)
    assert accepts(about, None, marked) == (AGAINST not in marked)


@settings(max_examples=80, deadline=None)
@given(contexts(), st.integers(0, 2**31 - 1), st.data())
def test_a_card_with_an_altered_fact_never_fits(about, seed, data):
    made = trace(about, "plain", seed)
    text = reasoning_target(made, about)
    (cited, *_) = made.steps[0].citations
    entry = about.cited(cited)
    assert entry is not None
    changes: list[dict] = [{"sign": -entry.sign}, {"shared": ["Western", *entry.shared]}]
    if entry.kind == "history":
        changes.append({"rating": 1.0 if entry.rating == 5 else 5.0 if entry.rating == 4 else 4.0})
    if entry.kind == "peers":
        changes.append({"support": 4 * entry.support + 4})
    altered = entry.model_copy(update=data.draw(st.sampled_from(changes)))
    true, false = evidence_card(entry, made.verdict), evidence_card(altered, made.verdict)
    assert true != false
    lie = text.replace(true, false)
    assert lie != text
    assert not accepts(about, made.verdict, lie)


GOOD = (
    " ( history [e1] <r5> <+> <=> Comedy <~> Drama ) The user liked [e1]."
    " ( history [e2] <r2> <-> <~> Drama War <!> ) But not [e2]. ( Yes ) So the user would like it."
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("( history [e1]", "( history [e9]"),
        ("liked [e1]", "liked [e9]"),
        ("liked [e1]", "liked [e2]"),
        ("liked [e1].", "liked it."),
        ("liked [e1].", "liked [e1] and [e2]."),
        ("<r5>", "<r4>"),
        ("<r5> <+>", "<r5> <->"),
        ("<=> Comedy", "<=> Drama"),
        (" <=> Comedy", ""),
        ("<~> Drama War", "<~> Drama"),
        ("history [e1]", "neighbour [e1]"),
        ("( history [e2] <r2> <-> <~> Drama War <!> ) ", ""),
        (" <!>", ""),
        ("Drama )", "Drama <!> )"),
        ("liked [e1].", "liked [e1], a 4 of 5."),
        ("liked [e1].", "liked [e1], a 55 of 5."),
        ("would like it.", "would like it 5."),
        ("liked [e1].", "liked [e1]"),
        ("liked [e1].", "liked [e1].."),
        ("liked [e1].", "liked [e1]. ."),
        ("But not", "But… not"),
        ("The user liked", "The <+> user liked"),
        ("The user liked", "The (user) liked"),
        ("The user", "The\nuser"),
        ("( Yes )", "( No )"),
        ("( Yes )", ""),
        ("( Yes ) So", "So"),
        ("would like it.", "would like it [e3]."),
        (" So the user would like it.", ""),
        (" ( history [e1]", "( history [e1]"),
    ],
)
def test_each_planted_fault_is_refused(old, new):
    assert accepts(usual(), True, GOOD)
    assert old in GOOD
    assert not accepts(usual(), True, GOOD.replace(old, new, 1))


@pytest.mark.parametrize("extra", ["it got 2.0 of 5 and ", "it got a 2 and ", "it stood out. Besides, "])
def test_a_dot_of_a_number_or_between_sentences_fits(extra):
    assert accepts(usual(), True, GOOD.replace("But not", f"But {extra}not"))


@pytest.mark.parametrize(
    ("order", "fits"),
    [
        ("1", True),
        ("4", True),
        ("12345", True),
        ("34512", True),
        ("12", True),
        ("", False),
        ("11", False),
        ("21", False),
        ("54", False),
        ("5431", False),
        ("132", False),
        ("341", True),
        ("3141", False),
    ],
)
def test_an_entry_is_cited_once_and_own_and_others_stand_together_in_order(order, fits):
    steps = [f" {evidence_card(usual().evidence[int(n) - 1], False)} As for [e{n}], so it is." for n in order]
    assert accepts(usual(), False, "".join(steps) + " ( No ) The user would not like it.") is fits


def test_without_evidence_only_the_conclusion_is_left():
    assert accepts(context(), False, " ( No ) The user would not like it.")
    assert not accepts(context(), False, " It is bad. ( No ) The user would not like it.")


@pytest.mark.parametrize("feature", ["C++", "a.b", "x|y", "$5^2", "{1}", "back\\slash", *FEATURES])
def test_features_are_text_and_no_pattern(feature):
    entry = evidence("e1", "history", 1, shared=[feature], features=[feature])
    about = context(entry)
    text = f" {evidence_card(entry, True)} The user liked [e1]. ( Yes ) So be it."
    assert accepts(about, True, text)
    assert not accepts(about, True, text.replace("<=> ", "<=> z"))


WORDS = [*'abchnpTo ,.:[]()<>\n"0159', "e1", "e9", " Yes", " No", " 5", " 4 of 5", ". And", "<end>"]
WALKER = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(WORDS, stop_token_ids=[len(WORDS) - 1]))


def walk(about: Context, answer: bool, seed: int) -> str:
    """A text drawn from what the grammar allows after each of its words."""
    rng = np.random.default_rng(seed)
    matcher = xgrammar.GrammarMatcher(WALKER.compile_grammar(reasoning_grammar(about, answer)))
    mask, text = xgrammar.allocate_token_bitmask(1, len(WORDS)), ""
    while not matcher.is_terminated():
        if forced := matcher.find_jump_forward_string():
            assert matcher.accept_string(forced)
            text += forced
            continue
        matcher.fill_next_token_bitmask(mask)
        allowed = [at for at in range(len(WORDS)) if int(mask[0, at // 32]) >> at % 32 & 1]
        at = int(rng.choice(allowed))
        assert matcher.accept_token(at)
        text += "" if at == len(WORDS) - 1 else WORDS[at]
    return text


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fits_reads_back_as_true_cards_and_the_answer(seed):
    about, answer = usual(), bool(seed % 2)
    text = walk(about, answer, seed)
    written = parse_reasoning(text)
    cards = {evidence_card(entry, answer)[2:-2].strip() for entry in about.evidence}
    assert written.conclusion is answer
    steps = [(body, step) for body, step in written.steps if body not in ("Yes", "No")]
    assert {body for body, _ in steps} <= cards
    assert len({body for body, _ in steps}) == len(steps) >= 1
    for body, step in steps:
        assert [f"[{name}]" for name in step.citations] == [body.split()[1]]
