import polars as pl
import pytest

from ray_app import records
from ray_app.config import DataConfig
from ray_app.data.clean import Clean, check_rejects, clean
from ray_app.data.codes import encode
from ray_app.data.sources import Raw
from ray_app.data.split import time_split
from ray_app.data.tables import META, parse_text
from ray_app.errors import DataError

ITEMS = "item_id,title\n10,Heat (1995)\n20,Alien\n"
CONFIG = DataConfig()


def raw(interactions: str, items: str = ITEMS, users: str = "") -> Raw:
    no_users = pl.DataFrame(schema={"user_id": pl.String} | META)
    return Raw(
        parse_text(interactions.encode(), "interactions.csv", ","),
        parse_text(items.encode(), "items.csv", ","),
        parse_text(users.encode(), "users.csv", ",") if users else no_users,
    )


def reasons(result: Clean, table: str) -> list[tuple[int, str]]:
    return result.rejects[table].select("line", "reason").rows()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",10,100,4", "missing user_id"),
        ("  ,10,100,4", "missing user_id"),
        (f"{'u' * 201},10,100,4", "unusable user_id"),
        ("a\x07b,10,100,4", "unusable user_id"),
        ("1,,100,4", "missing item_id"),
        ("1,10,,4", "missing timestamp"),
        ("1,10,NaN,4", "timestamp is not a number"),
        ("1,10,inf,4", "timestamp is not a number"),
        ("1,10,yesterday,4", "timestamp is not a number"),
        ("1,10,-1,4", "timestamp is not in epoch seconds"),
        ("1,10,1400000000000,4", "timestamp is not in epoch seconds"),
        ("1,10,100,four", "rating is not a number"),
        ("1,10,100,nan", "rating is not a number"),
        ("1,10,100,5.5", "rating out of range"),
        ("1,10,100,-1", "rating out of range"),
        ("1,10,100,", "neither rating nor label"),
        ("1,99,100,4", "unknown item_id"),
        ("1,10,100", "malformed line"),
        ("2,20,50,3", "duplicate"),
    ],
)
def test_each_bad_interaction_is_rejected_for_its_reason(row, reason):
    result = clean(raw(f"user_id,item_id,timestamp,rating\n2,20,50,3\n{row}\n3,10,60,5\n"), CONFIG)
    assert reasons(result, "interactions") == [(3, reason)]
    assert result.interactions["user_id"].to_list() == ["2", "3"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,10,100,2,train", "label is not 0 or 1"),
        ("1,10,100,,train", "neither rating nor label"),
        ("1,10,100,1,dev", "split is not train, valid or test"),
        ("1,10,100,1,", "split is not train, valid or test"),
    ],
)
def test_each_bad_label_or_split_is_rejected(row, reason):
    result = clean(raw(f"user_id,item_id,timestamp,label,split\n{row}\n2,10,5,0,test\n"), CONFIG)
    assert reasons(result, "interactions") == [(2, reason)]


def test_rejected_rows_are_kept_as_they_were():
    result = clean(raw("user_id,item_id,timestamp,rating\n1,99,100,4\n1,10\n"), CONFIG)
    assert result.rejects["interactions"].rows() == [
        (
            "interactions.csv",
            2,
            "unknown item_id",
            '{"user_id":"1","item_id":"99","timestamp":"100","rating":"4"}',
        ),
        ("interactions.csv", 3, "malformed line", "1,10"),
    ]


def test_a_rejected_row_does_not_make_its_sound_twin_a_duplicate():
    result = clean(raw("user_id,item_id,timestamp,rating\n1,10,100,9\n1,10,100,4\n"), CONFIG)
    assert reasons(result, "interactions") == [(2, "rating out of range")]
    assert result.interactions["rating"].to_list() == [4]


def test_one_item_at_two_times_is_no_duplicate():
    result = clean(raw("user_id,item_id,timestamp,rating\n1,10,100,2\n1,10,200,4\n"), CONFIG)
    assert result.interactions["timestamp"].to_list() == [100, 200]
    assert result.rejects["interactions"].height == 0


def test_a_label_wins_over_the_rating_that_is_kept_beside_it():
    result = clean(
        raw("user_id,item_id,timestamp,rating,label\n1,10,100,5,0\n1,20,100.9,4,\n2,20,7,,TRUE\n"), CONFIG
    )
    assert result.interactions.rows() == [
        ("1", "10", 100, 5.0, 0),
        ("1", "20", 100, 4.0, 1),
        ("2", "20", 7, None, 1),
    ]


def test_bad_items_are_rejected_and_so_are_their_interactions():
    items = "item_id,title\n10,Heat\n,Nameless\n20,\n30,\u200b\n10,Heat again\n"
    result = clean(raw("user_id,item_id,timestamp,rating\n1,10,100,4\n1,20,100,4\n", items), CONFIG)
    assert reasons(result, "items") == [
        (3, "missing item_id"),
        (4, "missing title"),
        (5, "missing title"),
        (6, "duplicate"),
    ]
    assert result.items["title"].to_list() == ["Heat"]
    assert reasons(result, "interactions") == [(3, "unknown item_id")]


def test_items_are_tidied():
    items = (
        "item_id,title,features,year,description\n"
        '1,"Sting, The (1973)",Comedy|Crime|,1974,"two\nlines"\n2,Unknown,unknown,n/a,\n3,Heat (1995),,V,\n'
    )
    result = clean(raw("user_id,item_id,timestamp,rating\n1,1,100,4\n", items), CONFIG)
    assert result.items.select("title", "features", "year", "description").rows() == [
        ("The Sting", ["Comedy", "Crime"], 1974, "two lines"),
        ("Unknown", [], None, ""),
        ("Heat", [], 1995, ""),
    ]
    assert result.years_unread == 1


def test_given_keywords_are_taken_instead_of_extracted_ones():
    items = "item_id,title,features,keywords\n1,Heat,Crime,heist|night\n2,Alien,Horror,\n"
    result = clean(raw("user_id,item_id,timestamp,rating\n1,1,100,4\n", items), CONFIG)
    assert result.items["keywords"].to_list() == [["heist", "night"], []]


def test_users_of_the_file_and_of_the_interactions_are_united():
    result = clean(
        raw(
            "user_id,item_id,timestamp,rating\n7,10,1,4\n8,10,1,4\n",
            users="user_id,city,age\n7, Oslo\t,\n9,,30\n",
        ),
        CONFIG,
    )
    assert sorted(result.users.rows()) == [("7", '{"city": "Oslo"}'), ("8", "{}"), ("9", '{"age": "30"}')]


def test_all_items_bad_is_an_error_with_counts_and_the_place_of_the_rejects():
    given = raw("user_id,item_id,timestamp,rating\n1,10,100,4\n", "item_id,title\n10,\n,x\n20,\n")
    result = clean(given, CONFIG)
    with pytest.raises(DataError) as error:
        check_rejects(given, result.rejects, 0.5, "run/rejects")
    assert str(error.value).startswith("interactions: 1 of 1 rows rejected (1 unknown item_id), more than")
    assert "run/rejects/interactions.parquet" in str(error.value)


def test_the_reject_rate_may_reach_its_limit_but_not_pass_it():
    given = raw("user_id,item_id,timestamp,rating\n1,10,100,4\n1,10,NaN,4\n1,20,100,4\n1,20,,1\n")
    rejects = clean(given, CONFIG).rejects
    check_rejects(given, rejects, 0.5, "r")
    with pytest.raises(
        DataError, match=r"2 of 4 rows rejected \(1 .*, 1 .*\), more than data.max_reject_rate 0.49"
    ):
        check_rejects(given, rejects, 0.49, "r")


def test_codes_are_rows_in_natural_order_and_do_not_depend_on_the_input_order():
    items = "item_id,title\nb,B\n10,Ten\n9,Nine\n"
    rows = ["10,b,3,4", "9,10,1,4", "a,9,2,1", "9,9,1,5"]
    header = "user_id,item_id,timestamp,rating\n"
    one = clean(raw(header + "\n".join(rows) + "\n", items), CONFIG)
    other = clean(raw(header + "\n".join(rows[::-1]) + "\n", items), CONFIG)
    tables = encode(one, time_split(one.interactions["timestamp"], CONFIG.split))
    again = encode(other, time_split(other.interactions["timestamp"], CONFIG.split))
    for left, right in zip(tables, again, strict=True):
        assert left.equals(right)
    interactions, encoded_items, users = tables
    assert encoded_items["item_id"].to_list() == ["9", "10", "b"]
    assert users["user_id"].to_list() == ["9", "10", "a"]
    assert interactions.columns == records.INTERACTIONS.names
    assert interactions.select("row_id", "user", "item", "timestamp", "label").rows() == [
        (0, 0, 0, 1, 1),
        (1, 0, 1, 1, 1),
        (2, 2, 0, 2, 0),
        (3, 1, 2, 3, 1),
    ]


def test_a_users_table_of_ids_alone_gives_empty_profiles():
    result = clean(raw("user_id,item_id,timestamp,rating\n1,10,100,4\n", users="user_id\n1\n7\n"), CONFIG)
    assert result.users.rows() == [("1", "{}"), ("7", "{}")]
