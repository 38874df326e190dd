"""Actors on one asyncio loop: mailboxes, references, supervision. Knows asyncio and msgspec, nothing of LLMs."""
