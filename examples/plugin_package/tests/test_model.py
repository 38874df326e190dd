"""The conformance kit on the tiny config that lies beside the model."""

from actorllm.testing.model_checks import model_checks

from actorllm_brook.model import BrookForCausalLM

test_model = model_checks(BrookForCausalLM)
