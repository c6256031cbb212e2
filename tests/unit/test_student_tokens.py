"""Tokens: marks are single, text survives, soft tokens have their place, answers theirs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_contexts import usual

from ray_app.collab.features import MAX_FEATURES
from ray_app.config import BootstrapConfig, PromptConfig
from ray_app.errors import PromptTooLongError
from ray_app.prompts.cards import MARKS
from ray_app.prompts.parse import before_conclusion, to_step
from ray_app.prompts.student import decide_prompt, explain_prompt, reasoning_target
from ray_app.records import Trace
from ray_app.student.batching import check_lengths, sequence
from ray_app.student.tokens import NO, YES, answer_ids, encode, train_tokenizer

CONFIG = PromptConfig()
FEATURES = ["Comedy", "Drama", "Sci-Fi", "Science_Fiction", "War", "Children's"]
TRACE = Trace(
    row_id=1,
    path=0,
    steps=[to_step("The user liked [e1]."), to_step("Others disliked it [e4], so they would not like it.")],
    verdict=False,
    label=False,
    mode="blind",
    rounds=0,
    template="plain",
    engine="evidence",
    model="evidence",
    tokens=9,
    accepted=True,
)
DECIDE, EXPLAIN = decide_prompt(usual(), CONFIG), explain_prompt(usual(), False, CONFIG)
REASONING = reasoning_target(TRACE, usual())


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([DECIDE + YES, EXPLAIN + REASONING] * 20, FEATURES, 600)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("mark", [*MARKS, "[e1]", "[e16]", "[h1]", "[h16]", "(", ")", *FEATURES, "Yes", "No"])
def test_a_mark_is_one_token(tokenizer, mark):
    assert len(ids(tokenizer, f" {mark}")) == 1
    (own,) = ids(tokenizer, f" {mark}")
    assert ids(tokenizer, f"liked {mark} and").count(own) == 1


def test_the_vocabulary_keeps_to_its_size(tokenizer):
    assert len(tokenizer) <= 600
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_more_marks_than_the_vocabulary_holds_still_make_a_tokenizer():
    features = [f"Feature_{n}" for n in range(MAX_FEATURES)]
    tokenizer = train_tokenizer([DECIDE], features, BootstrapConfig.model_fields["vocab"].metadata[0].ge)
    assert all(len(ids(tokenizer, f" {name}")) == 1 for name in features)
    assert tokenizer.decode(ids(tokenizer, REASONING)) == REASONING


def test_answers_are_one_token_each_and_a_tokenizer_without_them_is_refused(tokenizer):
    assert answer_ids(tokenizer) == (ids(tokenizer, YES)[0], ids(tokenizer, NO)[0])

    class Bytes:
        def encode(self, text, add_special_tokens):
            return list(text.encode())

    with pytest.raises(ValueError, match="must be single tokens"):
        answer_ids(Bytes())


@pytest.mark.parametrize("text", [DECIDE, EXPLAIN, REASONING])
def test_prompts_survive(tokenizer, text):
    plain = text.replace("<|user|>", "U").replace("<|item|>", "I").replace("<|pair|>", "P")
    assert tokenizer.decode(ids(tokenizer, plain)) == plain


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda t: "<|" not in t))
def test_any_text_survives(text):
    tokenizer = shared()
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [encode(again, text) for text in (DECIDE, EXPLAIN)] == [
        encode(tokenizer, text) for text in (DECIDE, EXPLAIN)
    ]
    assert ids(again, REASONING) == ids(tokenizer, REASONING)


_SHARED = []


def shared():
    """One tokenizer for Hypothesis, which takes no fixtures of a narrower life."""
    if not _SHARED:
        _SHARED.append(train_tokenizer([DECIDE, REASONING], FEATURES, 500))
    return _SHARED[0]


@pytest.mark.parametrize("prompt", [DECIDE, EXPLAIN])
def test_soft_tokens_take_one_position_between_their_neighbours(tokenizer, prompt):
    found = encode(tokenizer, prompt)
    assert set(found.soft) == {"user", "item", "pair"}
    assert found.ids[0] == tokenizer.bos_token_id
    assert found.soft["pair"] == found.soft["item"] + 1
    name_at = {at: name for name, at in found.soft.items()}
    fillers = [at for at, token in enumerate(found.ids) if token == tokenizer.bos_token_id]
    assert fillers == [0, *sorted(name_at)]
    rebuilt = ""
    for at, until in zip(fillers, [*fillers[1:], len(found.ids)], strict=True):
        rebuilt += f" <|{name_at[at]}|>" if at else ""
        rebuilt += tokenizer.decode(found.ids[at + 1 : until])
    assert rebuilt == prompt


def test_text_without_soft_tokens_has_none(tokenizer):
    assert encode(tokenizer, "plain").soft == {}


@pytest.mark.parametrize(("word", "label"), [(YES, 1), (NO, 0)])
def test_a_yes_no_row_predicts_its_verdict_and_learns_no_other_text(tokenizer, word, label):
    made = sequence(tokenizer, 7, 3, label, DECIDE, word, reasoned=False)
    assert tokenizer.decode(made.ids[made.answer + 1 :]) == word
    assert tokenizer.decode(made.ids[made.answer - 1 : made.answer + 1]).endswith("Answer:")
    assert made.text_start == made.answer == len(made.ids) - 2
    assert (made.row_id, made.label, made.reasoned) == (7, label, False)


def test_a_reasoning_row_predicts_the_verdict_in_the_prompt_and_learns_the_text_after_it(tokenizer):
    made = sequence(tokenizer, 7, 3, 0, EXPLAIN, REASONING, reasoned=True)
    assert tokenizer.decode([made.ids[made.answer + 1]]) == NO
    assert tokenizer.decode(made.ids[1 : made.answer + 1]).endswith("\nAnswer:")
    assert tokenizer.decode(made.ids[made.text_start + 1 : -1]) == REASONING
    assert made.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(made.ids[made.answer + 2 : made.text_start + 1]) == "\nStyle: plain\nReasoning:"


def test_a_row_that_was_told_no_answer_predicts_the_verdict_at_the_end_of_its_text(tokenizer):
    about = usual()
    about = about.model_copy(update={"target": about.target.model_copy(update={"title": "No Yes No"})})
    prompt = explain_prompt(about, None, CONFIG.model_copy(update={"titles": True}))
    text = reasoning_target(TRACE, about, told=False)
    made = sequence(tokenizer, 7, 3, 0, prompt, text, reasoned=True)
    assert tokenizer.decode([made.ids[made.answer + 1]]) == NO
    assert tokenizer.decode(made.ids[made.text_start + 1 : made.answer + 1]) == before_conclusion(text)
    assert tokenizer.decode(made.ids[made.text_start + 1 : -1]) == text
    # What is asked when it is served has the same tokens.
    asked = encode(tokenizer, prompt + text[: text.index(" No )")])
    assert asked.ids == made.ids[: made.answer + 1].tolist()
    assert asked.soft == made.soft


def test_titles_that_say_yes_or_no_do_not_move_the_answer(tokenizer):
    about = usual()
    about = about.model_copy(update={"target": about.target.model_copy(update={"title": "No Yes No"})})
    for prompt, continuation, reasoned in (
        (decide_prompt(about, CONFIG), YES, False),
        (explain_prompt(about, True, CONFIG.model_copy(update={"titles": True})), REASONING, True),
    ):
        made = sequence(tokenizer, 1, 3, 1, prompt, continuation, reasoned=reasoned)
        assert tokenizer.decode([made.ids[made.answer + 1]]) == YES
        assert tokenizer.decode(made.ids[: made.answer + 1]).endswith("Answer:")


def test_rows_above_the_limit_are_refused_with_the_longest_named():
    row_ids, lengths = np.array([7, 8, 9]), np.array([40, 52, 51])
    check_lengths(row_ids, lengths, 52)
    with pytest.raises(
        PromptTooLongError, match=r"^2 of 3 rows .*student\.max_length 50, row 8 has 52: raise"
    ):
        check_lengths(row_ids, lengths, 50)


def test_ids_fit_the_arrow_schema(tokenizer):
    made = sequence(tokenizer, 3, 3, 1, DECIDE, YES, reasoned=False)
    assert made.ids.dtype == np.int32
    assert made.ids.max() < len(tokenizer)
