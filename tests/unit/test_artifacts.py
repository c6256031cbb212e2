"""The run folder: atomic files, stages that are skipped, repeated or resumed, and what a reader sees."""

import os
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from ray_app.artifacts import MANIFEST, STARTED, Folder, Run, StageSpec, execute, fingerprint, is_current
from ray_app.errors import ArtifactError


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path) -> str:
    """An empty place on each kind of storage; S3 is a real server process."""
    base = {
        "local": lambda: tmp_path,
        "memory": lambda: "memory:/",
        "s3": lambda: request.getfixturevalue("s3"),
    }
    return f"{base[request.param]()}/{uuid4().hex}"


@pytest.fixture
def folder(place: str) -> Folder:
    return Folder(f"{place}/a")


@pytest.fixture
def run(place: str) -> Run:
    return Run(f"{place}/run")


class Body:
    """A stage's body that counts its calls and may be told to write several files or to fail."""

    def __init__(self, **files: bytes):
        self.files, self.calls, self.fails_after = files, 0, len(files)

    def __call__(self, folder: Folder) -> dict[str, int]:
        self.calls += 1
        for number, (name, content) in enumerate(self.files.items()):
            if number == self.fails_after:
                raise KeyboardInterrupt
            if not folder.exists(name):
                folder.write(name, content)
        return {"files": len(self.files)}


def stage(body: Body, name: str = "one", **more) -> StageSpec:
    return StageSpec(name, body, **({"keys": {"k": 1}} | more))


def test_a_folder_writes_reads_and_lists(folder):
    folder.write("x.bin", b"1")
    folder.write_json("deep/y.json", {"b": [1], "a": None})
    assert folder.names() == ["deep/y.json", "x.bin"]
    assert folder.names("deep") == ["deep/y.json"]
    assert folder.names("nowhere") == []
    assert (folder.read("x.bin"), folder.read_json("deep/y.json")) == (b"1", {"a": None, "b": [1]})
    assert folder.folder("deep").read("y.json") == folder.read("deep/y.json")
    folder.clear()
    assert folder.names() == []


def test_a_missing_or_broken_file_is_one_line_that_says_what_to_do(folder):
    with pytest.raises(ArtifactError, match=r"gone\.bin does not exist: run the stage"):
        folder.read("gone.bin")
    folder.write("bad.json", b"{")
    with pytest.raises(ArtifactError, match=r"bad\.json is not JSON: remove it"):
        folder.read_json("bad.json")


def test_a_failed_replacement_leaves_the_old_content_and_no_scratch(folder):
    folder.write("x", b"old")

    def fail() -> None:
        with folder.replacing("x") as local:
            Path(local).write_bytes(b"half of the n")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert folder.read("x") == b"old"
    assert folder.names() == ["x"]
    if folder.is_local:
        assert os.listdir(folder.root) == ["x"]


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        Folder(tmp_path).write("x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_file_being_written_is_not_seen_and_a_killed_one_never(tmp_path):
    folder = Folder(tmp_path)
    with folder.replacing("deep/x") as local:
        Path(local).write_bytes(b"half")
        assert folder.names() == []
        assert not folder.exists("deep/x")
    (tmp_path / "deep" / ".partial-killed").write_bytes(b"half")
    assert folder.names() == ["deep/x"]


def test_a_reader_beside_a_writer_sees_whole_files_only(tmp_path):
    folder, seen, stop = Folder(tmp_path), set(), threading.Event()
    folder.write("x", b"0" * 100_000)

    def read() -> None:
        while not stop.is_set():
            content = folder.read("x")
            seen.add((content[:1], len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for digit in b"123456789" * 10:
        folder.write("x", bytes([digit]) * 100_000)
    stop.set()
    reader.join()
    assert {facts[1:] for facts in seen} == {(100_000, 1)}


def test_a_local_copy_of_a_remote_folder_follows_it_even_at_the_same_size():
    folder = Folder(f"memory://{uuid4().hex}/stage")
    folder.write("deep/x.npy", b"11")
    assert (folder.local() / "deep/x.npy").read_bytes() == b"11"
    folder.write("deep/x.npy", b"22")
    assert (folder.local() / "deep/x.npy").read_bytes() == b"22"
    folder.fs.rm(folder.path("deep/x.npy"))
    assert not (folder.local() / "deep/x.npy").exists()


def test_what_a_stage_writes_into_its_local_copy_reaches_the_run(run):
    def body(folder: Folder) -> dict[str, int]:
        assert list(folder.local().rglob("*.bin")) == []
        (folder.local() / "deep").mkdir()
        (folder.local() / "deep" / "x.bin").write_bytes(b"123")
        return {}

    for key in (1, 2):
        manifest = execute(run, StageSpec("one", body, {"k": key}))
        assert manifest["files"]["deep/x.bin"] == 3
        assert run.stage("one").read("deep/x.bin") == b"123"


def test_the_local_copy_of_a_local_folder_is_itself(tmp_path):
    assert Folder(tmp_path).local() == tmp_path


def test_a_finished_stage_is_skipped_and_its_manifest_tells_its_cost(run):
    body = Body(x=b"1", y=b"22")
    manifest = execute(run, stage(body))
    assert manifest["counts"] == {"files": 2}
    assert manifest["files"]["x"] == 1
    assert manifest["files"]["y"] == 2
    assert manifest["seconds"] >= 0
    assert manifest["peak_memory_mb"] > 1
    assert manifest["resumed"] is False
    assert run.done("one")["counts"] == {"files": 2}
    assert execute(run, stage(body))["skipped"] is True
    assert body.calls == 1
    execute(run, stage(body), force=True)
    assert body.calls == 2


@pytest.mark.parametrize("change", [{"keys": {"k": 2}}, {"inputs": {"file": "hash"}}])
def test_a_changed_key_or_input_makes_it_run_again(run, change):
    body = Body(x=b"1")
    execute(run, stage(body))
    assert not is_current(run, stage(body, **change))
    assert "skipped" not in execute(run, stage(body, **change))
    assert execute(run, stage(body, **change))["skipped"]
    assert body.calls == 2


def test_a_changed_upstream_makes_it_run_again_but_a_repeated_one_does_not(run):
    above, below = Body(x=b"1"), Body(y=b"1")
    child = stage(below, "two", reads=["one"])
    with pytest.raises(ArtifactError, match=r"stage one of run .* is not finished: run it first"):
        execute(run, child)
    execute(run, stage(above))
    execute(run, child)
    execute(run, stage(above), force=True)
    assert execute(run, child)["skipped"]
    execute(run, stage(above, keys={"k": 2}))
    assert "skipped" not in execute(run, child)
    assert below.calls == 2


@pytest.mark.parametrize("damage", ["removed", "cut", "manifest"])
def test_a_damaged_stage_is_named_and_run_again(run, damage):
    body = Body(x=b"123")
    execute(run, stage(body))
    folder = run.stage("one")
    if damage == "removed":
        folder.fs.rm(f"{folder.root}/x")
    elif damage == "cut":
        folder.write("x", b"12")
    else:
        folder.write(MANIFEST, b'{"files": ')
    wanted = "is not JSON" if damage == "manifest" else r"/x is missing or not 3 bytes long: run stage one"
    with pytest.raises(ArtifactError, match=wanted):
        run.done("one")
    assert not is_current(run, stage(body))
    execute(run, stage(body))
    assert (body.calls, folder.read("x")) == (2, b"123")


def interrupted(run: Run, **more) -> tuple[Body, StageSpec]:
    """A stage that was killed between its two files."""
    body = Body(x=b"first", y=b"second")
    body.fails_after = 1
    spec = stage(body, **more)
    with pytest.raises(KeyboardInterrupt):
        execute(run, spec)
    assert run.stage("one").names() == [STARTED, "x"]
    with pytest.raises(ArtifactError, match="not finished"):
        run.done("one")
    body.fails_after, body.files = 2, {"x": b"again", "y": b"second"}
    return body, spec


def test_a_killed_stage_that_resumes_keeps_what_it_has(run):
    _, spec = interrupted(run, resumes=True)
    assert execute(run, spec)["resumed"] is True
    assert run.stage("one").read("x") == b"first"


def test_a_killed_stage_that_does_not_resume_starts_over(run):
    _, spec = interrupted(run)
    assert execute(run, spec)["resumed"] is False
    assert run.stage("one").read("x") == b"again"


def test_a_killed_stage_does_not_resume_under_another_fingerprint(run):
    body, _ = interrupted(run, resumes=True)
    manifest = execute(run, stage(body, keys={"k": 2}, resumes=True))
    assert manifest["resumed"] is False
    assert run.stage("one").read("x") == b"again"


def test_a_finished_stage_that_runs_again_does_not_build_on_its_old_files(run):
    body = Body(x=b"old")
    execute(run, stage(body, resumes=True))
    body.files = {"x": b"new"}
    execute(run, stage(body, resumes=True), force=True)
    assert run.stage("one").read("x") == b"new"


def test_a_removal_that_is_killed_leaves_nothing_to_resume(tmp_path, monkeypatch):
    run = Run(tmp_path)
    body = Body(x=b"old", y=b"old")
    spec = stage(body, resumes=True)
    execute(run, spec)
    folder = run.stage("one")
    remove = type(folder.fs).rm

    def killed(fs, path, recursive=False, **more):
        if recursive:
            remove(fs, f"{path}/x")
            raise KeyboardInterrupt
        remove(fs, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder.fs), "rm", killed)
        with pytest.raises(KeyboardInterrupt):
            execute(run, stage(body, keys={"k": 2}, resumes=True))
    body.files = {"x": b"new", "y": b"new"}
    assert execute(run, spec)["resumed"] is False
    assert folder.read("y") == b"new"


def test_fingerprints_depend_on_keys_upstream_and_inputs_only(run):
    execute(run, stage(Body(x=b"1")))
    base = fingerprint(run, stage(Body(), "two", reads=["one"]))
    assert base == fingerprint(run, stage(Body(z=b"9"), "two", reads=["one"], resumes=True))
    different = [{"keys": {"k": 2}}, {"reads": []}, {"inputs": {"f": "h"}}]
    assert (
        len({base, *(fingerprint(run, stage(Body(), "two", **{"reads": ["one"]} | d)) for d in different)})
        == 4
    )
