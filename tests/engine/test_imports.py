"""What serving on a CPU imports: torch's compiler, which takes more memory than a small model and seconds of every start, is not needed."""

import subprocess
import sys
from pathlib import Path

from actorllm.cli.main import main
from actorllm.house import DEMO_MODEL

SERVE = """
import sys
from actorllm import LLM, EngineSettings, SamplingParams
from actorllm.settings import ExecutionSettings, ModelSettings
execution = ExecutionSettings(device="cpu", threads=1, kv_slots=64)
forms = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4"}, {"path": sys.argv[1]}]
for form in forms:
    with LLM(settings=EngineSettings(model=ModelSettings(context=64, **form), execution=execution)) as llm:
        assert llm.generate("Hello", SamplingParams(max_tokens=6, ignore_eos=True))
    print(form, *(name for name in ("torch._dynamo", "torch._inductor", "triton") if name in sys.modules))
"""


def test_serving_imports_no_compiler(tmp_path: Path) -> None:
    assert main(["quantize", str(DEMO_MODEL), str(tmp_path / "int4"), "--weights", "int4"]) == 0
    run = subprocess.run([sys.executable, "-c", SERVE, str(tmp_path / "int4")], capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 5
    assert not [line for line in lines if not line.endswith("}")]
