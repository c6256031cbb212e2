"""The student on vLLM: exact scores, LoRA experts, soft tokens as prompt embeddings, forced cards.

One `LLMEngine` runs in a thread of this process: new requests join the running batch between steps
(continuous batching), and the engine starts in seconds because no second process is spawned. The same
class serves online (asyncio) and in batch jobs (`run`).

Two faults of vLLM 0.32 are worked around where they bite: a batch that mixes base and LoRA rows gives
base rows the last adapter, so every request here names an adapter, and `max_loras` exceeds their
number; LoRA with prompt embeddings needs the target modules spelled out.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ray_app.bundle import Bundle
from ray_app.config import EngineConfig
from ray_app.engines.phrasebook import Proposer
from ray_app.engines.student import Scoring, Writing
from ray_app.engines.vllm_lora import multiply_by_adapter
from ray_app.engines.vllm_setup import cpu_arguments, prepare
from ray_app.errors import EngineError, PromptTooLongError
from ray_app.student.adapters import check_adapters, readable
from ray_app.student.tokens import answer_ids, encode
from ray_app.telemetry import ENGINE, Telemetry

T = TypeVar("T")
POLL_S = 0.05
TRIES = 3
"""A prompt is scored this often at most: under load vLLM 0.32 has given one, of some 100,000, the log
probabilities of other tokens than the two that it allows."""


class VllmStudent:
    """Implements `engines.student.StudentEngine` for a bundle's model, projector and adapters."""

    def __init__(self, bundle: Bundle, config: EngineConfig):
        prepare(in_process=config.tensor_parallel == 1)
        import torch
        from transformers import AutoTokenizer
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest

        from ray_app.student.model import Projector

        multiply_by_adapter()
        model, adapters = bundle.model, bundle.adapters
        self.config = config
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.yes, self.no = answer_ids(self.tokenizer)
        with readable(f"the base model {model}"):
            self._nothing = torch.zeros_like(first_embedding(model))
        hidden = self._nothing.shape[1]
        rank = check_adapters(adapters, hidden)
        with readable(f"the projector in {bundle.path}"):
            state = torch.load(bundle.path / "projector.pt", weights_only=True)
        self._projector = Projector.load(state, hidden).float().eval()
        self._adapters = {
            name: LoRARequest(path.name, number, str(path))
            for number, (name, path) in enumerate(sorted(adapters.items()), 1)
        }
        device: dict[str, Any] = (
            {"kv_cache_memory_bytes": config.kv_cache_mb << 20, "distributed_executor_backend": "uni"}
            if config.kv_cache_mb
            else {"gpu_memory_utilization": config.memory_fraction}
        )
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=model,
                dtype=config.dtype,  # pyright: ignore[reportArgumentType]
                quantization=config.quantization,  # pyright: ignore[reportArgumentType]
                tensor_parallel_size=config.tensor_parallel,
                max_model_len=config.max_model_len,
                enforce_eager=config.eager,
                enable_prefix_caching=config.prefix_caching,
                enable_prompt_embeds=True,
                enable_lora=True,
                max_loras=len(adapters) + 1,
                max_lora_rank=max(8, rank),  # pyright: ignore[reportArgumentType]
                lora_target_modules=["q_proj", "v_proj", "qkv_proj"],
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                **device,
                **speculation(config),
                **cpu_arguments(config),
            )
        )
        self._telemetry = Telemetry()
        self._telemetry.appear(ENGINE)
        self._inbox: queue.SimpleQueue[tuple[str, Any, Any, Any, Future[Any]]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._closed = threading.Event()
        self._dead: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="vllm-student")
        self._thread.start()

    async def score(self, requests: list[Scoring]) -> np.ndarray:
        from vllm import SamplingParams

        # Only two tokens are allowed, so that their difference is that of their logits.
        words = [self.yes, self.no]
        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            allowed_token_ids=words,
            logprobs=len(words),
            detokenize=False,
            skip_clone=True,  # they are ours: a deep copy for each request takes a thirtieth of an answer
        )
        logits, left = np.zeros(len(requests), np.float32), list(range(len(requests)))
        for _ in range(TRIES):
            jobs = [(one.prompt, one.vectors, one.adapter, params) for one in (requests[at] for at in left)]
            unanswered = []
            for at, output in zip(left, await self._all(jobs, "decide"), strict=True):
                found = output.outputs[0].logprobs[0]
                if self.yes in found and self.no in found:
                    logits[at] = found[self.yes].logprob - found[self.no].logprob
                else:
                    unanswered.append(at)
            left = unanswered
            if not left:
                return self._with_direct(logits, requests)
        raise EngineError(
            f"the student engine gave {len(left)} of {len(requests)} prompts neither Yes nor No, "
            f"{TRIES} times"
        )

    def _with_direct(self, logits: np.ndarray, requests: list[Scoring]) -> np.ndarray:
        import torch

        if self._projector.direct is None or not requests:
            return logits
        vectors = {
            name: torch.from_numpy(np.stack([np.asarray(one.vectors[name], np.float32) for one in requests]))
            for name in self.widths
        }
        with torch.no_grad():
            return self._projector.score(torch.from_numpy(logits), vectors).numpy()

    async def write(self, requests: list[Writing]) -> list[str]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        jobs = []
        for request in requests:
            forced = StructuredOutputsParams(grammar=request.grammar) if request.grammar else None
            params = SamplingParams(
                temperature=0,
                max_tokens=request.max_tokens,
                structured_outputs=forced,
                stop_token_ids=[self.tokenizer.eos_token_id],
                skip_special_tokens=True,
                spaces_between_special_tokens=False,
                skip_clone=True,
            )
            jobs.append((request.prompt, request.vectors, request.adapter, params))
        return [output.outputs[0].text for output in await self._all(jobs, "write")]

    @property
    def widths(self) -> dict[str, int]:
        """Length of each collaborative vector."""
        return self._projector.widths

    async def healthy(self) -> None:
        from vllm import SamplingParams

        # Greedy, as all that runs beside it: a request that is sampled at random would change the others'.
        params = SamplingParams(temperature=0, max_tokens=1)
        vectors = {name: np.zeros(size, np.float32) for name, size in self.widths.items()}
        await self._all([("User:", vectors, min(self._adapters), params)])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `score(...)` or `write(...)` from code without an event loop."""
        return asyncio.run(work)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=30)

    async def _all(
        self, jobs: list[tuple[str, dict[str, np.ndarray], str, Any]], work: str = ""
    ) -> list[Any]:
        """Outputs in the order of the jobs, counted as this kind of work."""
        prompts = self._prompts([(text, vectors) for text, vectors, _, _ in jobs])
        futures = []
        for prompt, (_, _, adapter, params) in zip(prompts, jobs, strict=True):
            if adapter not in self._adapters:
                raise EngineError(f"no adapter {adapter!r}: the bundle has {', '.join(self._adapters)}")
            future: Future[Any] = Future()
            self._inbox.put((str(next(self._numbers)), prompt, params, self._adapters[adapter], future))
            futures.append(asyncio.wrap_future(future))
        if not self._thread.is_alive():
            raise EngineError(f"the student engine has stopped: {self._dead or 'closed'}")
        try:
            outputs = list(await asyncio.gather(*futures))
        finally:
            # Where one fails or the caller goes, nobody waits for the others: the thread drops them.
            for future in futures:
                future.cancel()
        if work:
            self._count(work, sum(len(prompt["prompt_embeds"]) for prompt in prompts), outputs)
        return outputs

    def _count(self, work: str, tokens: int, outputs: list[Any]) -> None:
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        written = sum(len(output.outputs[0].token_ids) for output in outputs)
        self._telemetry.add("rationale_prompts", len(outputs), work=work)
        for kind, count in (("read", tokens - cached), ("cached", cached), ("written", written)):
            self._telemetry.add("rationale_tokens", count, kind=kind)

    def _prompts(self, asked: list[tuple[str, dict[str, np.ndarray]]]) -> list[dict[str, Any]]:
        """Prompts as vLLM takes them: tokens, with an embedding in the soft places only."""
        import torch

        known: dict[str, list[int]] = {}
        encoded = [encode(self.tokenizer, text, known) for text, _ in asked]
        longest = max((len(one.ids) for one in encoded), default=0)
        if longest >= self.config.max_model_len:
            raise PromptTooLongError(
                f"a prompt has {longest} tokens, max_model_len is {self.config.max_model_len}: "
                f"raise it, or lower prompt.history"
            )
        prompts = [
            {
                "prompt_embeds": self._nothing.repeat(len(one.ids), 1),
                "prompt_token_ids": one.ids,
                "prompt_is_token_ids": [True] * len(one.ids),
            }
            for one in encoded
        ]
        for name in self.widths:
            places = [(row, one.soft[name]) for row, one in enumerate(encoded) if name in one.soft]
            if not places:
                continue
            values = np.stack([np.asarray(asked[row][1][name], np.float32) for row, _ in places])
            with torch.no_grad():
                projected = self._projector(name, torch.from_numpy(values)).to(self._nothing.dtype)
            for (row, at), value in zip(places, projected, strict=True):
                prompts[row]["prompt_embeds"][at] = value
                prompts[row]["prompt_is_token_ids"][at] = False
        return prompts

    def _serve(self) -> None:
        """The engine's thread: take in what has arrived, drop what nobody waits for any more, step, hand out
        what has finished."""
        waiting: dict[str, Future[Any]] = {}
        shown = -1
        try:
            while not self._closed.is_set():
                self._take(waiting, block=not waiting)
                self._drop(waiting)
                if len(waiting) != shown:
                    shown = len(waiting)
                    self._telemetry.set("rationale_waiting", shown)
                if not waiting:
                    continue
                for output in self._engine.step():
                    if output.finished and output.request_id in waiting:
                        _settle(waiting.pop(output.request_id), output)
        except BaseException as error:
            self._dead = error
        failure = EngineError(f"the student engine has stopped: {self._dead or 'closed'}")
        while not self._inbox.empty():
            waiting[""] = self._inbox.get()[-1]
            _fail(waiting.pop(""), failure)
        for future in waiting.values():
            _fail(future, failure)

    def _take(self, waiting: dict[str, Future[Any]], *, block: bool) -> None:
        while True:
            try:
                number, prompt, params, adapter, future = self._inbox.get(block=block, timeout=POLL_S)
            except queue.Empty:
                return
            block = False
            if future.cancelled():
                continue
            try:
                self._engine.add_request(number, prompt, params, lora_request=adapter)
                waiting[number] = future
            except ValueError as error:
                _fail(future, EngineError(f"the student engine refused a request: {error}"))

    def _drop(self, waiting: dict[str, Future[Any]]) -> None:
        gone = [number for number, future in waiting.items() if future.cancelled()]
        if gone:
            self._engine.abort_request(gone)
            for number in gone:
                del waiting[number]


def speculation(config: EngineConfig) -> dict[str, Any]:
    """Engine arguments for guessing so many tokens a step; none where the config has it guess nothing."""
    if not config.speculative_tokens:
        return {}
    proposer = f"{Proposer.__module__}.{Proposer.__qualname__}"
    guesses = {
        "method": "custom_class",
        "model": proposer,
        "num_speculative_tokens": config.speculative_tokens,
    }
    return {"speculative_config": guesses}


def first_embedding(model: str) -> Any:
    """The first row [1, H] of the input embeddings of a model folder or hub name, read without the rest."""
    import json

    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    name, file = "model.embed_tokens.weight", "model.safetensors"
    index = cached_file(model, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        file = json.loads(Path(index).read_text())["weight_map"][name]
    found = cached_file(model, file)
    with safe_open(str(found), framework="pt") as tensors:
        return tensors.get_slice(name)[:1]


def _settle(future: Future[Any], output: Any) -> None:
    # The caller may go at any moment, also between a question and an answer.
    with suppress(InvalidStateError):
        future.set_result(output)


def _fail(future: Future[Any], error: Exception) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)
