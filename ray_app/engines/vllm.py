"""vLLM in this process, for text prompts: the teacher where a language model is configured.

On a GPU it takes `tensor_parallel`, `quantization` and `memory_fraction`; on a CPU `kv_cache_mb` and
`eager`. A prompt that does not fit beside its answer is refused before it reaches the engine, where one
such prompt fails the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_app.config import EngineConfig
from ray_app.engines.interface import Generation, GenerationRequest
from ray_app.engines.vllm_setup import cpu_arguments, prepare
from ray_app.errors import EngineError


class VllmEngine:
    """Engine of kind `vllm`."""

    name = "vllm"

    def __init__(self, config: EngineConfig):
        self.model = config.model
        if config.model.startswith((".", "/", "~")) and not Path(config.model).expanduser().is_dir():
            raise EngineError(f"model folder {config.model} does not exist: correct engine.model")
        prepare(in_process=config.tensor_parallel == 1)
        if Path(config.model).is_dir():
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            from vllm import LLM

            self._llm = LLM(**engine_arguments(config), **cpu_arguments(config))
        except Exception as error:
            # vLLM raises whatever its parts raise (OSError, ValueError, RuntimeError, pydantic's): all fatal.
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"vLLM cannot start with model {config.model}: {reason}") from error
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._limit = config.max_model_len

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        tokens = [self._encode(request.prompt) for request in requests]
        answers: list[Generation] = []
        prompts, parameters, places = [], [], []
        for place, (request, ids) in enumerate(zip(requests, tokens, strict=True)):
            if len(ids) + request.max_tokens > self._limit:
                sizes = f"{len(ids)} tokens and {request.max_tokens} to write"
                error = f"prompt of {sizes} do not fit into max_model_len {self._limit}"
                answers.append(Generation(request.id, error=error))
                continue
            answers.append(Generation(request.id))
            places.append(place)
            prompts.append(TokensPrompt(prompt_token_ids=ids))
            parameters.append(
                SamplingParams(
                    n=request.n,
                    temperature=request.temperature,
                    max_tokens=request.max_tokens,
                    seed=request.seed,
                    structured_outputs=StructuredOutputsParams(regex=request.form) if request.form else None,
                )
            )
        try:
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False) if prompts else []
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"vLLM with model {self.model} died: {reason}") from error
        for place, output in zip(places, outputs, strict=True):
            texts = [text.text for text in output.outputs]
            tokens_written = [len(text.token_ids) for text in output.outputs]
            if all(tokens_written):
                answers[place] = Generation(requests[place].id, texts, tokens_written)
            else:  # even a text that ends at once has the token that ends it
                ends = ", ".join(sorted({str(text.finish_reason) for text in output.outputs}))
                answers[place] = Generation(requests[place].id, error=f"no token written ({ends})")
        return answers

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def _encode(self, prompt: str) -> list[int]:
        """Token ids, through the model's chat template where it has one."""
        if not getattr(self._tokenizer, "chat_template", None):
            return list(self._tokenizer.encode(prompt))
        message = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def engine_arguments(config: EngineConfig) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for a config."""
    arguments: dict[str, Any] = {
        "model": str(Path(config.model).expanduser()) if config.model.startswith("~") else config.model,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "tensor_parallel_size": config.tensor_parallel,
        "max_model_len": config.max_model_len,
        "enforce_eager": config.eager,
        "gpu_memory_utilization": config.memory_fraction,
        "enable_prefix_caching": config.prefix_caching,
        "distributed_executor_backend": "uni" if config.tensor_parallel == 1 else "mp",
    }
    if config.kv_cache_mb is not None:
        arguments["kv_cache_memory_bytes"] = config.kv_cache_mb * 2**20
    return arguments
