"""vLLM as a process: how it is started, watched, handed weights, and ended."""
