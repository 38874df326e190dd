"""The benchmark of what rounding costs: which text it takes, and that it reports what is asked."""

import sys
from pathlib import Path

import pytest

from actorllm.house import DEMO_MODEL
from tests.benchmarks import weights_quality


@pytest.fixture(autouse=True)
def one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_quality, "FORMS", {"int8": weights_quality.FORMS["int8"]})


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> bool:
    monkeypatch.setattr(sys, "argv", ["weights_quality", *flags])
    return weights_quality.main()


def test_without_a_model_the_demo_model_answers_what_it_was_not_trained_on(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "--tokens", "32")
    out = capsys.readouterr().out
    assert out.startswith("demo, text that the model answered to the questions of held_out.json")
    assert "int8 " in out and "int8 cache" in out and "asked: 99%" in out


def test_a_text_is_cut_in_rows(monkeypatch, capsys, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once there lived a grumpy rabbit in the desert. He wanted to learn to fly. " * 5)
    run(monkeypatch, str(DEMO_MODEL), "--text", str(text), "--tokens", "16")
    num_tokens = sum(len(row) - 1 for row in weights_quality.rows_of(DEMO_MODEL, text.read_text(), first_id=1, num_tokens=16))
    assert f"text of {text}" in (out := capsys.readouterr().out) and f"of {num_tokens} positions" in out


def test_texts_that_cannot_be_counted(monkeypatch, capsys, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for flags, complaint in ((("--questions", "q.json"), "not allowed with"), ((), "has no token")):
        with pytest.raises(SystemExit):
            run(monkeypatch, "--text", str(empty), *flags)
        assert complaint in capsys.readouterr().err


def test_of_other_models_the_text_is_their_own(monkeypatch, capsys, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    copy.symlink_to(DEMO_MODEL)
    run(monkeypatch, str(copy), "--rows", "2", "--tokens", "8")
    assert capsys.readouterr().out.startswith("other, text that the model wrote itself\n")
