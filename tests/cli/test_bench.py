"""`actorllm bench` on a tiny model: what is measured adds up, and comes out as a table, JSON and a plot."""

import json
from pathlib import Path

import pytest

from actorllm.cli.bench_loads import decode_figures
from actorllm.cli.main import main
from tests.parity.families.case import from_transformers

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
QUICK = ("--concurrency", "1,3", "--prompt-tokens", "5", "--output-tokens", "6", "--prefill", "20,600", "--rounds", "1", "--threads", "1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from_transformers("LlamaForCausalLM", SIZES, seed=0, directory=tmp_path / "model")
    return tmp_path / "model"


def test_every_load_is_measured(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model), *QUICK, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.SVG")]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert [row["concurrency"] for row in results["decoding"]] == [1, 3]
    assert [row["prompt_tokens"] for row in results["prefill"]] == [20]  # the model's context is 64 tokens
    for row in results["decoding"]:
        assert 0 < row["itl_median"] <= row["itl_p95"] <= row["itl_p99"] and row["tokens_per_second"] > 0 < row["ttft"]
    assert results["peak_bytes"] > results["model"]["num_weight_bytes"] > 0 < results["machine"]["read_bytes_per_second"]
    assert results["machine"]["num_threads"] == 1
    linear = 2 * (32 * 32 * 2 + 2 * 16 * 32 + 3 * 48 * 32)
    kv_bytes = 2 * 2 * 16 * 4 * (5 + 6 / 2)
    for row in results["decoding"]:
        num_bytes = 4 * (linear + 96 * 32) + row["concurrency"] * kv_bytes
        share = row["tokens_per_second"] / row["concurrency"] * num_bytes / results["machine"]["read_bytes_per_second"]
        assert row["share_of_bandwidth"] == pytest.approx(share)
    [row] = results["prefill"]
    share = row["tokens_per_second"] * 2 * (linear + 96 * 32 / 20) / results["machine"]["float_ops_per_second"]
    assert row["share_of_products"] == pytest.approx(share)
    assert (tmp_path / "out.SVG").read_text().lstrip().startswith("<?xml") and "by the probes" in (tmp_path / "out.SVG").read_text()
    out = capsys.readouterr().out
    assert "left out: prompts of 600 tokens, as the context has 64" in out
    assert "share of bandwidth |" in out and "share of products |" in out and "in float32. More than 100%" in out
    assert "| 3 |" in out and "| 20 |" in out and "peak memory" in out


def test_decoding_is_counted_while_all_decode() -> None:
    slow, quick = [0.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.0, 3.0, 4.0]
    row = decode_figures(2, [[slow, quick]])  # both decode from 2 to 4: two tokens each
    assert (row.tokens_per_second, row.steps_per_second) == (2.0, 1.0)
    assert (row.ttft, row.itl_median) == (1.5, 1.0)


def test_more_requests_than_usually_run_at_once(model: Path, tmp_path: Path) -> None:
    loads = ("--concurrency", "2,65", "--prompt-tokens", "2", "--output-tokens", "20", "--prefill", "5", "--rounds", "1", "--threads", "1")
    assert main(["bench", str(model), *loads, "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["decoding"]
    assert [row["concurrency"] for row in rows] == [2, 65] and rows[1]["tokens_per_second"] > 0


def test_requests_that_wait_for_each_other_are_no_figure(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cache holds 64 tokens, which is two requests."""
    loads = ("--concurrency", "1,4", "--prompt-tokens", "10", "--output-tokens", "20", "--prefill", "5", "--rounds", "1", "--threads", "1")
    (tmp_path / "settings.toml").write_text("[execution]\nkv_slots = 64\n")
    assert main(["bench", str(model), *loads, "--config", str(tmp_path / "settings.toml")]) == 2
    assert "4 requests ended before the last had its first token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--json", "absent/out.json"), "there is no folder absent"),
        (("--plot", "absent/out.png"), "there is no folder absent"),
        (("--json", "."), "is a folder"),
        (("--plot", "out.foo"), "the ending chooses the format, and has to be one of"),
        (("--plot", "out"), "the ending chooses the format, and has to be one of"),
    ],
)
def test_files_that_cannot_be_written(
    model: Path, flags: tuple[str, str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is measured."""
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr("actorllm.cli.bench_loads.measure", None)
    assert main(["bench", str(model), *flags]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--rounds", "0"), ("--output-tokens", "1"), ("--prompt-tokens", "-3")])
def test_loads_that_cannot_be(model: Path, flags: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model), *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_a_count_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--concurrency", "1,many"])
    assert "counts such as" in capsys.readouterr().err
