"""What a configuration will cost before it runs: tokens, operations, bytes, and from them time and memory.

    constants   every number that is not computed, with its source
    hardware    the GPUs
    models      shapes of language models: parameters, KV cache and activations per token
    work        how many rows, texts and tokens a config makes of so many interactions
    memory      what one GPU must hold, whether it does, and what would
    stages      seconds, memory and bytes of each stage
    service     replicas for a rate of requests

Arithmetic only: neither ray nor torch is imported, nothing is downloaded.
"""
