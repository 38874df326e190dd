"""The distributions, built as wheels and installed into a fresh environment far from the checkout."""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGINS = sorted(path.parent.name for path in Path(__file__).parents[2].glob("plugins/*/pyproject.toml"))
DISTRIBUTIONS = {"actorllm": ".", "actorllm_kernels": "kernels"} | {f"actorllm_{name}": f"plugins/{name}" for name in PLUGINS}


@dataclass(frozen=True)
class Installation:
    """An environment that has our wheels, seen from an empty folder."""

    bin: Path
    site_packages: Path
    folder: Path

    def run(self, *command: str) -> str:
        """Standard output of a command of the environment, which must succeed."""
        program, *arguments = command
        done = subprocess.run(
            [str(self.bin / program), *arguments], cwd=self.folder, env=clean_environment(), capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pip_install(self, *arguments: str) -> None:
        """Install into the environment, from what is on this machine alone."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.bin / "python")]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *arguments], check=True)


def clean_environment() -> dict[str, str]:
    """The variables of this process without those that would lead back to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ACTORLLM", "VIRTUAL_ENV"))}


def link_third_party(folder: Path) -> None:
    """Link all that is installed here into `folder`, except our own distributions: torch is not installed twice."""
    folder.mkdir()
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            is_ours = entry.name.lstrip("_").startswith("actorllm")
            if not is_ours and entry.suffix != ".pth" and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)


@pytest.fixture(scope="session")
def wheels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution -> its wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    building = [
        subprocess.Popen(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(repository / source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for source in DISTRIBUTIONS.values()
    ]
    outputs = [process.communicate(timeout=100)[0] for process in building]
    assert not any(process.returncode for process in building), "\n".join(outputs)
    return {name: next(folder.glob(f"{name}-*.whl")) for name in DISTRIBUTIONS}


@pytest.fixture(scope="session")
def installation(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A virtual environment with our wheels, and everybody else's packages as links."""
    return new_installation(wheels, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def workshop(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Another such environment, into which tests install plugins of their own."""
    return new_installation(wheels, tmp_path_factory.mktemp("workshop"))


def new_installation(wheels: dict[str, Path], folder: Path) -> Installation:
    """The same as `installation`, made anew in `folder`."""
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    done = Installation(environment / "bin", next(environment.glob("lib/python3.*/site-packages")), folder)
    done.pip_install(*map(str, wheels.values()))
    link_third_party(folder / "third_party")
    (done.site_packages / "third_party.pth").write_text(f"{folder / 'third_party'}\n")
    return done
