"""What is uploaded: the wheel has all that runs, and works where it is installed; the sdist is the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "nnunetv2_micd"
FOLDERS = (PACKAGE, "benchmarks", "docs", "examples", "tests")
FILES = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md")
SETTINGS = ("mkdocs.yml", "pyproject.toml")
CACHES = shutil.ignore_patterns("__pycache__", ".*")

pytestmark = pytest.mark.slow


def run(*command: str | Path, **environment: str) -> str:
    """Run a command outside of the repository and return what it prints."""
    environment = {**os.environ, **environment}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=REPOSITORY.anchor, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository, as building leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, copy / name, ignore=CACHES)
    for name in FILES + SETTINGS:
        shutil.copy(REPOSITORY / name, copy)
    return copy


@pytest.fixture(scope="module")
def distributions(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, with the setuptools that is installed."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_wheel_is_the_whole_package_and_nothing_else(source: Path, distributions: Path) -> None:
    [wheel] = distributions.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == {f"{PACKAGE}/{name}" for name in files_of(source / PACKAGE)}


def test_sdist_is_the_whole_repository(source: Path, distributions: Path) -> None:
    [sdist] = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert files >= {name for name in files_of(source) if ".egg-info/" not in name}


def test_index_accepts_the_description(distributions: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir())


def test_installed_wheel_works_from_another_folder(distributions: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    programs = tmp_path / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    # What the package needs is taken from this environment, except the package itself.
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(packages))
    [wheel] = distributions.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)

    command = programs / "nnUNetv2_micd"
    assert "nnUNetTrainerSelfTraining" in run(command, "list")
    folder = run(command, "path").strip()
    assert Path(folder).is_relative_to(tmp_path)
    find = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find;"
        "print(find('nnUNetTrainerSelfTraining').__module__)"
    )
    assert run(python, "-c", find, nnUNet_extTrainer=folder).strip().endswith(f"{PACKAGE}.methods.self_training")
