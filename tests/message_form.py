"""Which form messages between actors take in tests that do not choose one: `TEST_MESSAGES=plain` passes them as objects."""

import os

ENCODE = os.environ.get("TEST_MESSAGES") != "plain"
