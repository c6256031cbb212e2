"""Engines behind the interface: a real HTTP endpoint with its faults, the cache, and start-up errors."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from teacher_contexts import usual

from ray_app.artifacts import Folder
from ray_app.config import EngineConfig
from ray_app.engines.cache import CachedEngine
from ray_app.engines.evidence import EvidenceEngine
from ray_app.engines.interface import Generation, GenerationRequest, make_engine
from ray_app.engines.openai import ATTEMPTS, OpenAIEngine
from ray_app.engines.vllm import engine_arguments
from ray_app.errors import EngineError

TEXT = "Answer: Yes\nReasoning:\n1. The user liked [e1], so the user would enjoy it."


def ask(name: str = "1/0/0", **more) -> GenerationRequest:
    facts = {"prompt": "Why?", "template": "plain", "n": 1, "temperature": 0.5, "max_tokens": 64, "seed": 11}
    return GenerationRequest(id=name, context=usual(), **(facts | more))


class Endpoint:
    """A chat-completions server; `script` maps a prompt to the statuses it gets before 200."""

    def __init__(self):
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.script: dict[str, list[int]] = {}
        self.answer = lambda body: {
            "choices": [{"message": {"content": TEXT}}] * body["n"],
            "usage": {"completion_tokens": 21},
        }
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.bodies.append(body)
                endpoint.headers.append(dict(self.headers))
                statuses = endpoint.script.get(body["messages"][0]["content"], [])
                status = statuses.pop(0) if statuses else 200
                content = endpoint.answer(body) if status == 200 else {"error": "no\nluck"}
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.send_header("retry-after", "0")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def connect(url: str, **more) -> OpenAIEngine:
    config = EngineConfig(kind="openai", model="some-model", base_url=url, timeout_s=2, **more)
    return OpenAIEngine(config, first_wait_s=0.01)


def test_requests_are_sent_with_their_parameters_and_the_key(endpoint, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sesame")
    engine = connect(endpoint.url, api_key_env="TEACHER_KEY")
    answers = engine.generate([ask("a", n=2), ask("b", prompt="Why not?")])
    assert [answer.id for answer in answers] == ["a", "b"]
    assert answers[0].texts == [TEXT, TEXT]
    assert sum(answers[0].tokens) == sum(answers[1].tokens) == 21
    body = next(body for body in endpoint.bodies if body["n"] == 2)
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == (
        "some-model",
        0.5,
        64,
        11,
    )
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert endpoint.headers[0]["Authorization"] == "Bearer sesame"
    engine.close()


def test_429_and_5xx_are_tried_again(endpoint):
    endpoint.script["Why?"] = [429, 503]
    (answer,) = connect(endpoint.url).generate([ask()])
    assert (answer.texts, answer.error) == ([TEXT], "")
    assert len(endpoint.bodies) == 3


def test_a_request_that_keeps_failing_fails_alone(endpoint):
    endpoint.script["Why?"] = [500] * ATTEMPTS
    endpoint.script["Too long"] = [400]
    bad, refused, good = connect(endpoint.url).generate(
        [ask("a"), ask("b", prompt="Too long"), ask("c", prompt="Fine")]
    )
    assert bad.error.startswith("status 500")
    assert refused.error == 'status 400: {"error": "no\\nluck"}'
    assert good.texts == [TEXT]
    assert len(endpoint.bodies) == ATTEMPTS + 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"rubbish", "not a chat completion"),
        ({"choices": []}, "0 choices instead of 1"),
        ({"detail": "x"}, "not a chat completion"),
    ],
)
def test_rubbish_is_an_error_not_a_text(endpoint, answer, error):
    endpoint.answer = lambda body: answer
    (generation,) = connect(endpoint.url).generate([ask()])
    assert generation.texts == []
    assert generation.error.startswith(error)


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "check api_key_env"), (404, "check base_url and model")]
)
def test_a_refused_key_or_an_unknown_model_is_fatal(endpoint, status, advice):
    endpoint.script["Why?"] = [status]
    with pytest.raises(EngineError, match=advice):
        connect(endpoint.url).generate([ask()])


def test_a_server_that_is_not_there_is_fatal(endpoint):
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(EngineError, match=r"cannot be reached.*start the server"):
        connect(endpoint.url).generate([ask()])


def test_missing_settings_are_one_line_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(EngineError, match="set base_url"):
        make_engine(EngineConfig(kind="openai", model="m"))
    with pytest.raises(EngineError, match="NO_SUCH_KEY"):
        make_engine(EngineConfig(kind="openai", model="m", base_url="http://x", api_key_env="NO_SUCH_KEY"))
    with pytest.raises(EngineError, match=r"model folder .* does not exist: correct engine\.model"):
        make_engine(EngineConfig(kind="vllm", model=str(tmp_path / "nothing")))


def test_engine_arguments_follow_the_config():
    gpu = engine_arguments(
        EngineConfig(kind="vllm", model="Qwen/Qwen-32B", quantization="awq", tensor_parallel=4)
    )
    assert (gpu["tensor_parallel_size"], gpu["quantization"]) == (4, "awq")
    assert gpu["distributed_executor_backend"] == "mp"
    assert "kv_cache_memory_bytes" not in gpu
    cpu = engine_arguments(EngineConfig(kind="vllm", model="m", kv_cache_mb=64, eager=True))
    assert (cpu["kv_cache_memory_bytes"], cpu["enforce_eager"]) == (64 * 2**20, True)
    assert cpu["distributed_executor_backend"] == "uni"


class Counting(EvidenceEngine):
    def __init__(self, error: str = ""):
        super().__init__(EngineConfig())
        self.served: list[str] = []
        self.error = error

    def generate(self, requests):
        self.served += [request.id for request in requests]
        answers = super().generate(requests)
        return [Generation(a.id, error=self.error) for a in answers] if self.error else answers


def test_the_cache_serves_the_same_answer_without_the_engine(tmp_path):
    first, second = Counting(), Counting()
    asked = CachedEngine(first, Folder(tmp_path)).generate([ask("a"), ask("b", seed=12)])
    again = CachedEngine(second, Folder(tmp_path)).generate(
        [ask("other", seed=13), ask("x", seed=12), ask("y")]
    )
    assert (first.served, second.served) == (["a", "b"], ["other"])
    assert [answer.id for answer in again] == ["other", "x", "y"]
    assert [answer.texts for answer in again[1:]] == [asked[1].texts, asked[0].texts]


@pytest.mark.parametrize("change", [{"prompt": "How?"}, {"seed": 1}, {"temperature": 0.9}, {"n": 2}])
def test_the_cache_key_covers_what_decides_an_answer(tmp_path, change):
    engine = Counting()
    CachedEngine(engine, Folder(tmp_path)).generate([ask("a")])
    CachedEngine(engine, Folder(tmp_path)).generate([ask("b", **change)])
    assert engine.served == ["a", "b"]


def test_the_cache_keeps_no_errors(tmp_path):
    CachedEngine(Counting(error="busy"), Folder(tmp_path)).generate([ask()])
    engine = Counting()
    CachedEngine(engine, Folder(tmp_path)).generate([ask("again")])
    assert engine.served == ["again"]
