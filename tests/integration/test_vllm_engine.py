"""vLLM with a tiny random Llama, in process and as a server: texts, seeds, and prompts that do not fit."""

import os
import re
import socket
import subprocess
import sys
import time

import httpx
import pytest

from ray_app.config import EngineConfig
from ray_app.engines.interface import GenerationRequest, make_engine
from ray_app.errors import EngineError
from ray_app.records import Context, Item

pytestmark = pytest.mark.slow
CONTEXT = Context(
    user_id="u",
    timestamp=1,
    history_count=0,
    like_rate=0.5,
    target=Item(item_id="t", title="T"),
    profile=[],
    evidence=[],
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama of two layers with a word-level tokenizer that has a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *"Answer Yes No Reasoning : . user liked the item e1 why not".split()]
    core = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %} Answer :"
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def engine(model):
    config = EngineConfig(
        kind="vllm", model=model, dtype="float32", kv_cache_mb=32, eager=True, max_model_len=96
    )
    made = make_engine(config)
    yield made
    made.close()


def ask(name: str, prompt: str = "why the item", **more) -> GenerationRequest:
    facts = {"template": "plain", "n": 2, "temperature": 1.0, "max_tokens": 12, "seed": 5}
    return GenerationRequest(id=name, prompt=prompt, context=CONTEXT, **(facts | more))


def test_texts_come_back_in_order_with_their_tokens(engine):
    long = "the user " * 60
    first, second, third = engine.generate([ask("a"), ask("b", long), ask("c", "why not", n=1)])
    assert [first.id, second.id, third.id] == ["a", "b", "c"]
    assert (len(first.texts), len(third.texts)) == (2, 1)
    assert all(1 <= tokens <= 12 for tokens in first.tokens + third.tokens)
    assert second.error == "prompt of 123 tokens and 12 to write do not fit into max_model_len 96"
    assert engine.generate([]) == []


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(engine):
    (alone,) = engine.generate([ask("a")])
    crowd = engine.generate([ask(str(n), seed=n) for n in range(6)])
    assert crowd[5].texts == alone.texts
    assert len({tuple(answer.texts) for answer in crowd}) > 1


def test_a_form_is_forced_while_decoding(engine):
    # No blank: this tokenizer's words have none.
    (answer,) = engine.generate([ask("a", form=r"Answer:(Yes|No)")])
    assert all(re.fullmatch(r"Answer ?: ?(Yes|No)", text.strip()) for text in answer.texts)


def test_a_request_that_the_engine_ends_with_nothing_written_is_an_error(engine, monkeypatch):
    generate = engine._llm.generate

    def broken(*arguments, **named):
        outputs = generate(*arguments, **named)
        outputs[0].outputs[1].token_ids, outputs[0].outputs[1].finish_reason = [], "abort"
        return outputs

    monkeypatch.setattr(engine._llm, "generate", broken)
    first, second = engine.generate([ask("a"), ask("b")])
    assert (first.texts, first.error) == ([], "no token written (abort, length)")
    assert len(second.texts) == 2
    assert second.error == ""


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """vLLM's own server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "96"]
    command += ["--kv-cache-memory-bytes", str(32 << 20)]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + 500
            while True:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.heavy
def test_the_openai_engine_speaks_to_a_vllm_server(server, engine):
    config = EngineConfig(kind="openai", model="tiny", base_url=server, max_model_len=1000, timeout_s=120)
    client = make_engine(config)
    one, too_long, other = client.generate(
        [ask("a"), ask("b", "the user " * 60), ask("c", "why not", n=1, form="(Yes|No)")]
    )
    assert [len(answer.texts) for answer in (one, too_long, other)] == [2, 0, 1]
    assert all(one.texts)
    assert 2 <= sum(one.tokens) <= 24
    assert too_long.error.startswith("status 400: ")
    assert other.texts[0].strip() in ("Yes", "No")
    again = client.generate([ask("a")])
    assert again[0].texts == one.texts, "the same seed, the same texts"
    client.close()


@pytest.mark.heavy
def test_a_model_the_server_does_not_have_is_one_clear_error(server):
    client = make_engine(EngineConfig(kind="openai", model="huge", base_url=server))
    with pytest.raises(EngineError, match="answered 404 for model 'huge': it knows no such path or model"):
        client.generate([ask("a")])
