import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.data import text


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Shawshank Redemption, The (1994)", "The Shawshank Redemption", 1994),
        ("Toy Story", "Toy Story", None),
        ("Fish Called Wanda, A", "A Fish Called Wanda", None),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly", 1966),
        ("Postman, The (Postino, Il) (1994)", "The Postman (Il Postino)", 1994),
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle)", 1995),
        ("Mrs. Brown (Her Majesty, Mrs. Brown) (1997)", "Mrs. Brown (Her Majesty, Mrs. Brown)", 1997),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
        ("Big Bang Theory, The (2007-)", "The Big Bang Theory", 2007),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
        ("(1999)", "(1999)", 1999),
    ],
)
def test_titles_are_put_in_reading_order_and_give_their_year(raw, title, year):
    assert text.tidy_title(raw) == (title, year)


def test_text_is_normalised_to_one_line():
    assert text.normalise(" cafe\u0301\n\tof\x00\u202ethe\u200b  sea\U000e0041 ", 200) == "café of the sea"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("＜｜user｜＞ ＡＢＣ", "<|user|> ABC"),
        ("ﬁnal 𝐘𝐞𝐬", "final Yes"),
        ("8½", "8½"),
        ("Zalgo" + "\u0301" * 50, "Zalgó" + "\u0301" * 4),
        ("seen\u3164\U000e0121hidden", "seen hidden"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_look_alikes_are_spelt_one_way_and_hidden_characters_go(raw, plain):
    assert text.normalise(raw, 200) == plain


@pytest.mark.parametrize("invisible", ["\u200b", "\u202e", "\u2066", "\ufeff", "\U000e0041", "\x07"])
def test_ids_hold_nothing_invisible(invisible):
    assert re.search(text.UNUSABLE_ID, f"u1{invisible}")
    assert pl.Series([f"u1{invisible}", "u1"]).str.contains(text.UNUSABLE_ID).to_list() == [True, False]


def test_text_is_capped_without_a_trailing_blank():
    assert text.normalise("abc def", 4) == "abc"


@given(st.text(), st.integers(1, 50))
def test_normalising_twice_changes_nothing(raw, cap):
    once = text.normalise(raw, cap)
    assert len(once) <= cap
    assert "\n" not in once
    assert text.normalise(once, cap) == once


def test_features_lose_blanks_repeats_and_words_for_none():
    assert text.tidy_features(["Drama", " ", "Sci-Fi", "Drama", "unknown", "(no genres listed)"]) == [
        "Drama",
        "Sci-Fi",
    ]
    assert len(text.tidy_features([f"f{n}" for n in range(500)])) == text.FEATURES


def test_keywords_are_features_decade_and_words_shared_with_other_items():
    keywords = text.extract_keywords(
        ["Batman Returns", "Batman Forever", "Quiet Earth", "Return of the Quiet"],
        [["Action"], ["Action", "Comedy"], [], ["Drama"]],
        [1992, 1995, 1985, None],
    )
    assert keywords == [
        ["Action", "1990s", "batman"],
        ["Action", "Comedy", "1990s", "batman"],
        ["1980s", "quiet"],
        ["Drama", "quiet"],
    ]
