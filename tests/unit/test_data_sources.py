import zipfile

import polars as pl
import pytest

from ray_app.config import DataConfig
from ray_app.data import sources
from ray_app.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path):
    (tmp_path / "interactions.csv").write_text("userId,movieId,stars,timestamp\n1,10,4,100\n")
    (tmp_path / "items.csv").write_text("movieId,title,genres\n10,Heat (1995),Action|Crime\n")
    (tmp_path / "users.csv").write_text("userId,city\n1,Oslo\n")
    return tmp_path


def own(files, columns: dict[str, str], **paths: str | None) -> DataConfig:
    given = {table: str(files / f"{table}.csv") for table in ("interactions", "items", "users")} | paths
    return DataConfig(source="files", columns=columns, **given)


MAPPING = {"user_id": "userId", "item_id": "movieId", "rating": "stars", "features": "genres"}


def visible(frame: pl.DataFrame) -> dict:
    return frame.select(name for name in frame.columns if not name.startswith("_")).to_dicts()[0]


def test_columns_are_mapped_and_users_keep_theirs_as_profile(files):
    raw = sources.read(own(files, MAPPING))
    assert visible(raw.interactions) == {"user_id": "1", "item_id": "10", "timestamp": "100", "rating": "4"}
    assert visible(raw.items) == {"item_id": "10", "title": "Heat (1995)", "features": "Action|Crime"}
    assert visible(raw.users) == {"user_id": "1", "city": "Oslo"}


def test_users_are_optional(files):
    raw = sources.read(own(files, MAPPING, users=None))
    assert raw.users.height == 0


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (MAPPING | {"tittle": "title"}, ConfigError, "unknown column 'tittle': map one of description"),
        (MAPPING | {"year": "released"}, DataError, "maps year to 'released', and no input file has"),
        (
            {"item_id": "movieId", "rating": "stars"},
            DataError,
            r"interactions: no column 'user_id' \(it has userId,",
        ),
        ({"user_id": "userId", "item_id": "movieId"}, DataError, "no rating and no label column"),
    ],
)
def test_a_wrong_mapping_or_a_missing_column_is_named(files, columns, error, message):
    with pytest.raises(error, match=message) as caught:
        sources.read(own(files, columns))
    assert "\n" not in str(caught.value)


def test_a_missing_path_is_named(files):
    with pytest.raises(ConfigError, match=r"data.source is files but data.items is not set"):
        sources.content_hashes(own(files, MAPPING, items=None))
    with pytest.raises(DataError, match=r"gone.csv does not exist"):
        sources.content_hashes(own(files, MAPPING, items=str(files / "gone.csv")))


def test_content_hashes_follow_contents_and_not_places(files, tmp_path):
    before = sources.content_hashes(own(files, MAPPING))
    moved = tmp_path / "moved.csv"
    moved.write_bytes((files / "items.csv").read_bytes())
    assert sources.content_hashes(own(files, MAPPING, items=str(moved))) == before
    moved.write_text("movieId,title\n10,Heat\n")
    after = sources.content_hashes(own(files, MAPPING, items=str(moved)))
    assert after["items"] != before["items"]
    assert after["interactions"] == before["interactions"]


def test_grouplens_own_folder_is_read(tmp_path):
    flags = "|".join("1" if genre in ("Drama", "Film-Noir") else "0" for genre in sources.GENRES)
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n")
    (tmp_path / "u.item").write_bytes(
        f"242|Café au Lait (1993)|24-Jan-1997||http://x|{flags}\n".encode("latin-1")
    )
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n")
    raw = sources.read(DataConfig(path=str(tmp_path)))
    assert visible(raw.interactions) == {
        "user_id": "196",
        "item_id": "242",
        "rating": "3",
        "timestamp": "881250949",
    }
    assert visible(raw.items) == {
        "item_id": "242",
        "title": "Café au Lait (1993)",
        "features": ["Drama", "Film-Noir"],
    }
    assert visible(raw.users)["occupation"] == "writer"


def test_a_grouplens_folder_without_its_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"u.data does not exist"):
        sources.content_hashes(DataConfig(path=str(tmp_path)))


def test_the_wheels_files_are_read(tmp_path, monkeypatch):
    wheel = tmp_path / "recbole.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{sources.RECBOLE_MEMBER}.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n",
        )
        archive.writestr(
            f"{sources.RECBOLE_MEMBER}.item",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            "242\tKolya\t1996\tChildren's Sci-Fi\n",
        )
        archive.writestr(f"{sources.RECBOLE_MEMBER}.user", "user_id:token\tage:token\n196\t49\n")
    monkeypatch.setattr(sources.packages, "fetch", lambda *_: wheel)
    raw = sources.read(DataConfig())
    assert visible(raw.items) == {
        "item_id": "242",
        "title": "Kolya",
        "year": "1996",
        "features": ["Children's", "Sci-Fi"],
    }
    assert visible(raw.interactions)["timestamp"] == "881250949"
    assert visible(raw.users) == {"user_id": "196", "age": "49"}
