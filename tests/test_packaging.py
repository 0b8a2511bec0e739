"""What is installed from a wheel is whole: every file of the package, and a user's mypy sees its types."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.engines
LIBRARIES = ("torch", "transformers", "datasets", "trl", "peft", "accelerate", "numpy", "pyarrow", "rich", "matplotlib")
SKIPPED = "[mypy-{0}.*]\nfollow_imports=skip\n[mypy-{0}]\nfollow_imports=skip\n"
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(kind: str, folder: Path) -> Path:
    """A wheel or an sdist, from a copy of what the repository holds."""
    source = folder / "source"
    if not source.exists():
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in files.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(folder)], cwd=source, capture_output=True, text=True, check=True
    )
    return folder / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def installed(folder: Path) -> Path:
    """A folder with the wheel's content, as `pip install` would lay it down."""
    with zipfile.ZipFile(build("wheel", folder)) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def run(*arguments: str, installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def files_of(package: Path) -> set[str]:
    kept = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package).as_posix() for path in kept}


def test_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    assert files_of(installed / "adaptpo") == files_of(installed.parent / "source" / "adaptpo")


def test_sdist_holds_what_a_build_needs(folder: Path) -> None:
    with tarfile.open(build("sdist", folder)) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "adaptpo/report/report.html.j2", "adaptpo/vote/vote.js"} <= names


def test_installed_package_runs_a_sandbox_and_reports(installed: Path, tmp_path: Path) -> None:
    """What a world, a run and a report need comes along."""
    where = run("-c", "import adaptpo; print(adaptpo.__file__)", installed=installed, cwd=tmp_path)
    assert where.stdout.strip() == str(installed / "adaptpo" / "__init__.py")
    for arguments in (
        ("sandbox", "build", "--out", "world", "--prompts", "60"),
        ("train", "world/recipe.yaml", "--set", "method=dpo", "--set", "output_dir=run", "--set", "eval_data=null"),
        ("report", "run"),
    ):
        done = run("-m", "adaptpo", *arguments, installed=installed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report/report.html").stat().st_size > 10_000


def test_types_reach_a_user(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from adaptpo import AlignmentConfig, methods\n"
        "args = AlignmentConfig(output_dir='x')\n"
        "reveal_type(methods.metaapo())\n"
        "wrong: int = args.seed + args.output_dir\n"
    )
    # Reading the libraries' own types would take minutes.
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports=silent\n" + "".join(map(SKIPPED.format, LIBRARIES)))
    found = run("-m", "mypy", "mine.py", installed=installed, cwd=tmp_path).stdout
    assert 'Revealed type is "adaptpo.choices.method.Method"' in found
    assert "mine.py:4: error: Unsupported operand types" in found and "import-untyped" not in found
