"""Inference: engines that continue prompts, decoding with a KV cache, sampling, generated responses, chat."""
