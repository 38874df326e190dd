"""Models: the contract of plugins, and the catalog of those that are installed. What follows needs no torch to be read."""

CONTRACT_VERSION = 1
ENTRY_POINT_GROUP = f"actorllm.models.v{CONTRACT_VERSION}"
