"""Settings: a file, then the environment, then flags; whatever is wrong is named with its mend."""

import subprocess
import sys
from pathlib import Path

import pytest

from actorllm.errors import SettingsError
from actorllm.settings import load_settings


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[scheduling]\nmax_waiting = 1\nmax_running = 2\ndepth = 2\n[server]\nport = 1000\n")
    environment = {"ACTORLLM_SCHEDULING_MAX_WAITING": "3", "ACTORLLM_SCHEDULING_MAX_RUNNING": "4", "OTHER": "x"}
    settings = load_settings(file, environment=environment, flags={"scheduling": {"max_waiting": 5}})
    assert (settings.scheduling.max_waiting, settings.scheduling.max_running, settings.scheduling.depth) == (5, 4, 2)
    assert settings.server.port == 1000
    assert settings.engine().scheduling == settings.scheduling


@pytest.mark.parametrize("text", ["scheduling = 3", "[scheduling]\nnothing = 1", "[scheduling]\ndepth = 7", "= 5", "[other]\na = 1"])
def test_a_wrong_file_is_a_settings_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        load_settings(file, environment={}, flags={"scheduling": {"max_waiting": 5}})


def test_unreadable_files_are_settings_errors(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes.toml", "absent.toml"):
        with pytest.raises(SettingsError, match=name):
            load_settings(tmp_path / name, environment={})


@pytest.mark.parametrize("name", ["ACTORLLM_NOTHING", "ACTORLLM_SCHEDULING_NOTHING"])
def test_unknown_variables_are_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings(environment={name: "1"})


def test_importing_the_package_bounds_spinning_and_loads_no_torch() -> None:
    script = "import os, sys, actorllm; print(int(os.environ['GOMP_SPINCOUNT']) > 0, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_several_values_of_a_variable_are_divided_by_commas() -> None:
    settings = load_settings(environment={"ACTORLLM_SERVER_ALLOWED_ORIGINS": "null, https://example.org"})
    assert settings.server.allowed_origins == ("null", "https://example.org")


@pytest.mark.parametrize("origin", ["chat.example.org", "https://chat.example.org/", "https://Chat.example.org", "https://a b"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"as https://chat\.example\.org is"):
        load_settings(environment={}, flags={"server": {"allowed_origins": [origin]}})
