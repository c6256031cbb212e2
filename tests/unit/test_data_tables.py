import csv
import io
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.data import tables
from ray_app.errors import DataError


def parse(content: bytes | str, **options) -> pl.DataFrame:
    raw = content.encode() if isinstance(content, str) else content
    return tables.parse_text(raw, "t.csv", ",", **options)


def rejected(frame: pl.DataFrame) -> list[tuple]:
    return frame.filter(pl.col("_reason").is_not_null()).select("_line", "_reason", "_raw").rows()


def taken(frame: pl.DataFrame) -> list[tuple]:
    return frame.filter(pl.col("_reason").is_null()).select("a", "b", "c").rows()


def test_a_clean_file_is_text_with_line_numbers():
    frame = parse("a,b,c\n1,x,2.5\n2,,3\n")
    assert frame.select("a", "b", "c", "_line").rows() == [("1", "x", "2.5", 2), ("2", None, "3", 3)]


@pytest.mark.parametrize("line", ["7,8", "7,8,9,10", '7,"8,9', '7,8"x,9'])
def test_a_malformed_line_costs_itself_and_not_its_neighbours(line):
    frame = parse(f"a,b,c\n1,2,3\n{line}\n4,5,6\n10,11,12\n")
    assert taken(frame) == [("1", "2", "3"), ("4", "5", "6"), ("10", "11", "12")]
    assert rejected(frame) == [(3, "malformed line", line)]


def test_two_stray_quotes_do_not_swallow_the_lines_between_them():
    frame = parse('a,b,c\n1,"2,3\n4,5,6\n7",8,9\n10,11,12\n')
    assert taken(frame) == [("4", "5", "6"), ("10", "11", "12")]
    assert rejected(frame) == [(2, "malformed line", '1,"2,3'), (4, "malformed line", '7",8,9')]


def test_a_last_line_cut_short_by_a_crash_is_malformed():
    assert rejected(parse("a,b,c\n1,2,3\n4,5")) == [(3, "malformed line", "4,5")]


def test_an_empty_last_field_is_not_a_short_row():
    frame = parse("a,b,c\n1,2,\n4,5,6\n")
    assert taken(frame) == [("1", "2", None), ("4", "5", "6")]


def test_a_quoted_line_break_belongs_to_its_field():
    frame = parse('a,b,c\n1,"x\ny",3\n4,5,6\n')
    assert taken(frame) == [("1", "x\ny", "3"), ("4", "5", "6")]
    assert frame["_line"].to_list() == [2, 4]


def test_bytes_that_are_not_utf8_are_named():
    frame = parse(b"a,b,c\n1,caf\xe9,3\n4,5,6\n")
    assert taken(frame) == [("4", "5", "6")]
    assert rejected(frame) == [(2, "not UTF-8", "1,caf\ufffd,3")]


def test_crlf_byte_order_mark_and_blank_lines_are_no_data():
    assert taken(parse(b"\xef\xbb\xbfa,b,c\r\n1,2,3\r\n\r\n4,5,6\r\n")) == [("1", "2", "3"), ("4", "5", "6")]


def test_a_headerless_latin1_file_is_read_with_given_columns():
    frame = parse("1,Café,3\n".encode("latin-1"), columns=["a", "b", "c"], encoding="latin-1")
    assert taken(frame) == [("1", "Café", "3")]
    assert frame["_line"].to_list() == [1]


def test_a_file_without_a_header_or_with_two_of_a_name_is_refused():
    with pytest.raises(DataError, match=r"t.csv has no header line"):
        parse("")
    with pytest.raises(DataError, match="two columns named 'a'"):
        parse("a,b,a\n1,2,3\n")


_cell = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00\ufffd\ufeff"), max_size=8)


@given(st.lists(st.tuples(_cell.filter(str.strip), _cell, _cell), min_size=1, max_size=20))
def test_whatever_a_csv_writer_writes_is_read_back(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["a", "b", "c"])
    writer.writerows(rows)
    assert taken(parse(text.getvalue())) == [tuple(cell or None for cell in row) for row in rows]


def test_parquet_values_become_the_text_a_csv_would_have(tmp_path):
    file = tmp_path / "t.parquet"
    pl.DataFrame(
        {
            "whole": [7.0, float("nan")],
            "half": [2.5, 3.0],
            "time": [datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), None],
            "liked": [True, False],
            "list": [["a", "b|c"], []],
        }
    ).write_parquet(file)
    frame = tables.read(str(file))
    assert frame.drop("_file", "_reason", "_raw").rows() == [
        ("7", "2.5", "1000000000", "true", ["a", "b|c"], 1),
        (None, "3", None, "false", [], 2),
    ]


def test_a_broken_parquet_file_and_a_strange_suffix_are_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"t.parquet is not a Parquet file"):
        tables.read(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match=r"t.xlsx is neither"):
        tables.read(str(tmp_path / "t.xlsx"))


def test_a_folder_lists_its_tables_and_nothing_else(tmp_path):
    for name in ("b.csv", "a.parquet", "_SUCCESS", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [uri.rsplit("/", 1)[-1] for uri in tables.list_files(str(tmp_path))] == ["a.parquet", "b.csv"]


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        tables.list_files(str(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match=r"holds no .csv"):
        tables.list_files(str(tmp_path))
