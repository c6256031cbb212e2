"""The launcher's parts that need no Ray: environment, token, ports, state, ending processes, make."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import cluster as clusters
from pipelines import common, deploy, env, local, monitor, run, setup, submit
from ray_app.artifacts import Run, StageSpec
from ray_app.config import load, validate
from ray_app.errors import ArtifactError, ConfigError, LaunchError

REPO = Path(__file__).resolve().parents[2]


def state(head: clusters.Process, scratch: Path, **more) -> clusters.Cluster:
    return clusters.Cluster(head=head, gcs_port=1, dashboard_port=2, scratch=str(scratch), **more)


def spawn(code: str, **more) -> subprocess.Popen[str]:
    """A Python child that prints a line once it is ready."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **more)
    assert child.stdout is not None
    child.stdout.readline()
    return child


SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def bystander():
    child = spawn(SLEEPER)
    yield child
    assert child.poll() is None, "a process that is not ours was ended"
    child.kill()
    child.wait()


# The environment


def test_environment_is_offline_authenticated_and_starts_with_the_venv(tmp_path):
    variables = env.environment(tmp_path)
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / ".local" / "token")
    assert variables["TORCH_EXTENSIONS_DIR"].startswith(str(tmp_path))
    assert variables["PATH"].split(os.pathsep)[0] == f"{sys.prefix}/bin"
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    assert (variables.get("LD_PRELOAD", "").split(":")[0] == str(openmp)) == openmp.exists()


def test_environment_laid_over_itself_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/libother.so")
    once = env.environment(tmp_path)
    for name, value in once.items():
        monkeypatch.setenv(name, value)
    assert env.environment(tmp_path) == once
    assert once["LD_PRELOAD"].endswith("libother.so")


def test_enter_does_nothing_where_the_environment_is_already_so(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    env.enter(tmp_path, "pipelines.local")
    assert started[0][1][1:3] == ["-m", "pipelines.local"]
    for name, value in env.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    env.enter(tmp_path, "pipelines.local")
    assert len(started) == 1


def test_env_runs_a_command_in_the_environment():
    words = [sys.executable, "-m", "pipelines.env", "printenv", "VLLM_CPU_OMP_THREADS_BIND"]
    result = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "nobind"


def test_what_is_forked_after_torch_was_imported_has_all_cores():
    mask = "import os; print(os.sched_getaffinity(0), flush=True)"
    code = f"import subprocess, sys, torch; words = [sys.executable, '-c', '{mask}']"
    code += f"; subprocess.run(words, preexec_fn=lambda: None, check=True); {mask}"
    words = [sys.executable, "-m", "pipelines.env", sys.executable, "-c", code]
    # scikit-learn, once imported here, sets a variable that hides it.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    result = subprocess.run(words, cwd=REPO, env=clean, capture_output=True, text=True, check=True)
    forked, own = result.stdout.splitlines()
    assert forked == own


# The token


def test_token_is_for_its_owner_alone_and_stays_the_same(tmp_path):
    file = env.token_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    first = file.read_text()
    assert len(first) == 64
    assert env.token_file(tmp_path).read_text() == first
    assert [one.name for one in file.parent.iterdir()] == ["token"]


def test_launchers_started_together_share_one_token(tmp_path):
    code = "import sys; from pathlib import Path; from pipelines.env import token_file;"
    code += "print(token_file(Path(sys.argv[1])).read_text())"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = [subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert len({child.communicate()[0] for child in pipes}) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606])
def test_token_that_others_can_read_is_refused(tmp_path, mode):
    env.token_file(tmp_path).chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}.*chmod 600"):
        clusters.token(tmp_path)


def test_empty_token_is_refused(tmp_path):
    env.token_file(tmp_path).write_text("\n")
    with pytest.raises(ConfigError, match="empty: remove it"):
        clusters.token(tmp_path)


# Ports


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_is_left_to_its_owner(host, shared):
    with socket.socket() as owner:
        if shared:  # as Serve's proxies listen
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind((host, 0))
        owner.listen()
        taken = owner.getsockname()[1]
        assert clusters.free_port(taken) not in (taken, 0)


def test_a_free_port_is_taken_as_asked():
    port = clusters.free_port()
    assert clusters.free_port(port) == port


# The state and what is ended


def test_state_survives_writing_and_reading(tmp_path):
    me = clusters.Process.of(psutil.Process())
    ours = state(me, tmp_path / "scratch", serve_port=3, deployed={"bundle": "abc"})
    clusters.save_state(tmp_path, ours)
    known = clusters.load_state(tmp_path)
    assert known is not None
    assert known.model_copy(update={"processes": []}) == ours
    assert me in known.processes
    assert known.address == "127.0.0.1:1"


def test_no_state_and_damaged_state(tmp_path):
    assert clusters.load_state(tmp_path) is None
    (env.state_folder(tmp_path) / "cluster.json").write_text('{"head": {"pid": 12')
    with pytest.raises(LaunchError, match=r"cluster\.json is damaged"):
        clusters.load_state(tmp_path)


def test_a_pid_used_again_by_someone_else_is_not_ours(bystander, tmp_path):
    stranger = clusters.Process(pid=bystander.pid, created=time.time() - 3600)
    assert stranger.live() is None
    assert clusters.members(state(stranger, tmp_path, processes=[stranger])) == []


def test_stop_ends_the_head_its_children_and_orphans_and_nobody_else(bystander, tmp_path):
    # A head with a stubborn child, and a grandchild whose own parent is gone.
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    orphaner = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    head = spawn(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}])\n"
        f"subprocess.run([sys.executable, '-c', {orphaner!r}])\n"
        "time.sleep(0.5)\n" + SLEEPER,
        start_new_session=True,
    )
    ours = state(clusters.Process.of(psutil.Process(head.pid)), tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    clusters.save_state(tmp_path, ours)
    known = clusters.load_state(tmp_path)
    assert known is not None
    running = clusters.members(known)
    assert len(running) == 3
    assert any(one.ppid() != head.pid for one in running if one.pid != head.pid)

    assert clusters.stop(tmp_path, known, grace_s=0.5) == 3
    assert not [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert clusters.load_state(tmp_path) is None
    assert not (tmp_path / "scratch").exists()
    head.wait()


def test_stop_after_everything_died_only_forgets(bystander, tmp_path):
    child = spawn(SLEEPER, start_new_session=True)
    ours = state(clusters.Process.of(psutil.Process(child.pid)), tmp_path / "scratch")
    clusters.save_state(tmp_path, ours)
    child.kill()
    child.wait()
    assert not clusters.is_healthy(tmp_path, ours)
    assert clusters.stop(tmp_path, ours) == 0
    assert clusters.load_state(tmp_path) is None


# Set-up


def test_only_a_lock_that_nobody_holds_is_removed(tmp_path):
    held, stale = tmp_path / "held" / "lock", tmp_path / "stale" / "lock"
    for lock in (held, stale):
        lock.parent.mkdir()
    stale.touch()
    code = f"import os; os.open({str(held)!r}, os.O_CREAT | os.O_EXCL)\n" + SLEEPER
    builder = spawn(code)
    try:
        assert setup.remove_stale_locks(tmp_path) == [stale]
        assert held.exists()
    finally:
        builder.kill()
        builder.wait()
    assert setup.remove_stale_locks(tmp_path) == [held]


def test_the_mark_of_an_installation_follows_the_lock(tmp_path):
    (tmp_path / "requirements").mkdir()
    lock = setup.lock_file(tmp_path)
    lock.write_text("numpy==2.3.5\n")
    before = setup.lock_hash(tmp_path)
    stamp = tmp_path / "stamp"
    assert not setup.is_stamped(stamp, before)
    stamp.write_text(before)
    assert setup.is_stamped(stamp, setup.lock_hash(tmp_path))
    lock.write_text("numpy==2.3.6\n")
    assert not setup.is_stamped(stamp, setup.lock_hash(tmp_path))


def test_every_direct_dependency_is_locked_and_has_its_line_in_the_docs():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    names = [
        re.split(r"[^A-Za-z0-9_.-]", line)[0]
        for line in [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    ]
    locked = {line.split("==")[0].lower() for line in setup.lock_file(REPO).read_text().splitlines()}
    described = (REPO / "docs" / "dependencies.md").read_text()
    assert [name for name in names if name.lower() not in locked] == []
    assert [name for name in names if f"`{name}`" not in described] == []


# The job and the service


@given(
    st.lists(
        st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs"))).map("key={}".format),
        max_size=3,
    )
)
def test_the_jobs_command_line_survives_the_shell(overrides):
    words = shlex.split(submit.pipeline_command("a b.yaml", "/runs/x", overrides))
    assert words[:3] == [sys.executable, "-m", "pipelines.run"]
    options = run.arguments().parse_args(words[3:])
    assert (options.config, options.run, options.set) == ("a b.yaml", "/runs/x", overrides)


def test_last_line_of_a_log_that_comes_in_pieces():
    heard = []
    tail = submit._Tail(heard.append)
    for piece in ("one\ntw", "o\nerror: no", " such key\n", "\n"):
        tail(piece)
    assert tail.last == "error: no such key"
    assert "".join(heard) == "one\ntwo\nerror: no such key\n\n"


def test_a_package_that_is_too_large_is_refused_and_its_largest_paths_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "LIMIT_MB", 1)
    for name, size in (("data/a/big.bin", 900), ("data/a/more.bin", 300), ("runs/x.bin", 5000), ("x.py", 1)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size * 1024))
    with pytest.raises(LaunchError, match=r"has 1 MB, at most 1 travel; largest: data/a \(1 MB\), x\.py"):
        submit.check_size(tmp_path)
    (tmp_path / ".gitignore").write_text("data/\n")
    submit.check_size(tmp_path)


def test_this_checkout_travels():
    submit.check_size(REPO)


def test_jobs_carry_run_config_and_tags():
    found = submit.tags(["team=search"], validate({"name": "shop"}, "test"), "s3://b/runs/shop")
    assert found.items() >= {"run": "s3://b/runs/shop", "config": "shop", "team": "search"}.items()
    for wrong in ("team", "run=other", "=x"):
        with pytest.raises(ConfigError, match=f"--tag '{wrong}'"):
            submit.tags([wrong], validate({}, "test"), "r")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--config", "configs/local.yaml"], "run folder 'runs' is relative"),
        (["--config", "{outside}", "--run", "memory://b/r"], "is outside the checkout"),
    ],
)
def test_what_another_cluster_could_not_find_is_refused(tmp_path, words, reason):
    (tmp_path / "c.yaml").write_text("name: shop\n")
    words = [word.format(outside=tmp_path / "c.yaml") for word in words]
    options = submit.arguments().parse_args([*words, "--address", "http://127.0.0.1:1"])
    with pytest.raises(ConfigError, match=reason):
        submit.submit(options)


def test_prometheus_that_is_not_installed_is_said_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor.shutil, "which", lambda name: None)
    head = clusters.Process(pid=1, created=0.0)
    with pytest.raises(LaunchError, match="apt-get install"):
        monitor.up(tmp_path, state(head, tmp_path))


def test_prometheus_of_another_time_with_our_pid_is_left_alone(tmp_path, bystander):
    one = monitor.Monitor(process=clusters.Process(pid=bystander.pid, created=1.0), port=1)
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / monitor.STATE).write_text(one.model_dump_json())
    assert monitor.load_state(tmp_path) is None
    assert not monitor.down(tmp_path)


def test_relative_paths_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").touch()
    file = tmp_path / "c.yaml"
    file.write_text(
        "data: {source: files, interactions: mine.csv, items: s3://b/items}\nstudent: {base: org/model}\n"
    )
    assert submit.absolute_paths(load(file)) == [f"data.interactions={tmp_path}/mine.csv"]


def test_the_effective_config_is_named_by_its_content_and_loads_again(tmp_path):
    first = deploy.effective_config(tmp_path, validate({"seed": 1}, "test"))
    assert deploy.effective_config(tmp_path, validate({"seed": 1}, "test")) == first
    assert deploy.effective_config(tmp_path, validate({"seed": 2}, "test")) != first
    assert load(first) == validate({"seed": 1}, "test")


# The stages


def test_stages_from_and_until():
    assert run.chosen("swing", "reason") == ["swing", "encode", "reason"]
    assert run.chosen(None, None) == run.STAGES
    with pytest.raises(ConfigError, match="--until 'bake' is not a stage: give one of prepare"):
        run.chosen(None, "bake")
    with pytest.raises(ConfigError, match="--from mix comes after --until swing"):
        run.chosen("mix", "swing")


def test_an_unknown_stage_is_one_line_and_exit_code_2():
    words = [sys.executable, "-m", "pipelines.run", "--from", "bake"]
    result = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --from 'bake'")
    assert result.stderr.count("\n") == 1


def test_stages_run_once_then_are_skipped_unless_forced(tmp_path, monkeypatch, capsys):
    made = []

    def spec(name, reads):
        def body(folder):
            made.append(name)
            folder.write("out", name.encode())
            return {"rows": 1}

        return StageSpec(name, body, keys={}, reads=reads)

    specs = {"prepare": spec("prepare", []), "swing": spec("swing", ["prepare"])}
    monkeypatch.setattr(run, "make_spec", lambda name, config, folder: specs[name])
    monkeypatch.setattr(common, "start_ray", lambda config: None)
    folder = Run(tmp_path / "r")
    with pytest.raises(ArtifactError, match=r"prepare of run .* is not finished"):
        run.run_stages(["swing"], validate({}, "test"), folder)
    for _ in range(2):
        run.run_stages(["prepare", "swing"], validate({}, "test"), folder)
    assert made == ["prepare", "swing"]
    assert capsys.readouterr().out.count("up to date") == 2
    run.run_stages(["swing"], validate({}, "test"), folder, force=True)
    assert made == ["prepare", "swing", "swing"]


def start_a_ray(**variables: str) -> subprocess.CompletedProcess[str]:
    command = "from pipelines.common import *; cli(lambda: start_ray(load('configs/local.yaml')))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", command],
        cwd=REPO, env=clean | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_ray_that_does_not_come_up_is_one_line(tmp_path):
    """Its sockets have no place: a path of theirs may have 107 bytes."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    found = start_a_ray(RAY_TMPDIR=str(deep))
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: Ray did not start (")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_one_line(scheme):
    address = f"{scheme}127.0.0.1:{clusters.free_port()}"
    found = start_a_ray(RAY_ADDRESS=address)
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: RAY_ADDRESS {address} does not answer (")


# make


def make(*words: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    # This suite may itself run under make, which tells its children so and makes them more talkative.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=cwd, env=clean, capture_output=True, text=True)


def test_make_alone_lists_its_targets():
    listed = make().stdout
    for target in (
        "setup",
        "run",
        "stop",
        "monitor",
        "test",
        "test-fast",
        "test-slow",
        "lint",
        "fmt",
        "clean",
    ):
        assert f"make {target} " in listed


def test_make_stop_without_a_venv_has_nothing_to_stop(tmp_path):
    (tmp_path / "Makefile").write_text((REPO / "Makefile").read_text())
    result = make("stop", cwd=tmp_path)
    assert (result.returncode, result.stdout.startswith("nothing to stop")) == (0, True)


def test_make_run_hands_on_config_and_overrides():
    plan = make("-n", "run", "CONFIG=x.yaml", "SET=seed=3 mix.reason_share=0.3").stdout
    assert "up --config x.yaml --set 'seed=3' --set 'mix.reason_share=0.3'" in plan


def test_down_and_status_where_nothing_is_up_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "ROOT", tmp_path)
    for command, words in (("down", "nothing to stop"), ("status", "down:")):
        options = local.arguments().parse_args([command])
        options.act(options)
        assert capsys.readouterr().out.startswith(words)
    assert list(tmp_path.iterdir()) == []
