"""Operators of LLM inference, one module each: the plain torch reference is the specification.

Imports nothing of actorllm: everything comes in as tensors and numbers.
"""
