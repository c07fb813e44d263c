from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof.errors import MissingExtra
from crashproof.optional_dependencies import (
    install_line,
    install_line_for,
    is_installed,
    require_modules,
    require_versions,
)

SOURCES = Path(__file__).parents[2] / "src"
WHEEL = "crashproof-0.1.0-py3-none-any.whl"
USES = {
    "tensorboard": ("tensorboard", "from crashproof.exporters.tensorboard import TensorBoardSink as T; T('x')"),
    "wandb": ("wandb", "from crashproof.exporters.wandb import WandbSink as W; W('x')"),
    "mlflow": ("mlflow", "from crashproof.exporters.mlflow import MLflowSink as M; M('sqlite:///x.db')"),
    "pyarrow": ("parquet", "from crashproof.exporters.tables import write_parquet as w; w('x', 'y')"),
    "pandas": ("pandas", "import crashproof; crashproof.load('x', engine='pandas')"),
    "polars": ("polars", "import crashproof; crashproof.load('x', engine='polars')"),
}
"""By package: its extra, and a program that needs it."""


@pytest.mark.parametrize(
    "direct_url, expected",
    [
        pytest.param(None, "'crashproof[torch]'", id="an index"),
        pytest.param("{}", "'crashproof[torch]'", id="not what PEP 610 describes"),
        pytest.param(
            '{"url": "file:///home/ann/crashproof", "dir_info": {"editable": true}}',
            "-e '/home/ann/crashproof[torch]'",
            id="an editable checkout",
        ),
        pytest.param(
            '{"url": "file:///my%20code/crashproof", "dir_info": {}}',
            "'/my code/crashproof[torch]'",
            id="a folder with a space",
        ),
        pytest.param(
            f'{{"url": "file:///my%20files/{WHEEL}", "archive_info": {{}}}}',
            f"'crashproof[torch] @ file:///my%20files/{WHEEL}'",
            id="a wheel",
        ),
        pytest.param(
            f'{{"url": "https://ann:secret@example.org/{WHEEL}?token=secret#secret", "archive_info": {{}}}}',
            f"'crashproof[torch] @ https://example.org/{WHEEL}'",
            id="an archive behind a password",
        ),
        pytest.param(
            '{"url": "https://example.org/all.zip", "archive_info": {}, "subdirectory": "python"}',
            "'crashproof[torch] @ https://example.org/all.zip#subdirectory=python'",
            id="a folder of an archive",
        ),
        pytest.param(
            '{"url": "https://secret@example.org/c.git", "vcs_info": {"vcs": "git", "commit_id": "4f1c2ab"}}',
            "'crashproof[torch] @ git+https://example.org/c.git@4f1c2ab'",
            id="a repository behind a token",
        ),
        pytest.param(
            '{"url": "ssh://git@example.org:22/c.git", "vcs_info": {"vcs": "git", "commit_id": "4f1c2ab"}}',
            "'crashproof[torch] @ git+ssh://git@example.org:22/c.git@4f1c2ab'",
            id="a repository over SSH",
        ),
    ],
)
def test_the_install_line_names_the_place_that_crashproof_was_installed_from(direct_url, expected):
    assert f"pip install {expected}" == install_line_for("torch", direct_url)


def test_the_origin_is_read_from_the_installed_metadata(tmp_path):
    described = tmp_path / "crashproof-0.1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: crashproof\nVersion: 0.1.0\n")
    (described / "direct_url.json").write_text('{"url": "file:///a", "dir_info": {"editable": true}}')

    assert "pip install -e '/a[torch]'" == printed_install_line(SOURCES, tmp_path)


def test_sources_on_the_path_are_installed_from_their_checkout():
    assert f"pip install -e '{SOURCES.parent}[torch]'" == printed_install_line(SOURCES)


def test_sources_without_a_project_file_are_installed_from_the_index(tmp_path):
    package = tmp_path / "vendored" / "src" / "crashproof"
    package.mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "optional_dependencies.py"):
        (package / name).write_bytes((SOURCES / "crashproof" / name).read_bytes() if name[0] != "_" else b"")

    assert "pip install 'crashproof[torch]'" == printed_install_line(package.parent)


def printed_install_line(*path: Path) -> str:
    """What a process prints that sees crashproof in `path`, and not as it is installed for the tests."""
    program = (
        "import sys\n"
        "from importlib.metadata import Distribution\n"
        "found = Distribution.discover(name='crashproof', path=sys.argv[1:])\n"
        "Distribution.discover = classmethod(lambda cls, **_: found)\n"
        "from crashproof.optional_dependencies import install_line\n"
        "print(install_line('torch'))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, *map(str, path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )
    return said.stdout.rstrip("\n")


@pytest.mark.parametrize(
    "lowest", [{"msgspec": "0.1"}, {"msgspec": "0.20", "pytest": "9.0"}], ids=["one package", "several packages"]
)
def test_packages_of_sufficient_version_pass(lowest):
    require_versions("some", lowest)


def test_an_older_version_is_reported_with_both_versions():
    with pytest.raises(MissingExtra, match=r"it needs msgspec 1000\.0 or later, and \S+ is installed\."):
        require_versions("some", {"msgspec": "1000.0"})


def test_a_missing_package_is_reported_with_the_install_line():
    with pytest.raises(MissingExtra) as raised:
        require_versions("some", {"no-such-package-anywhere": "1.0"})

    assert install_line("some") in str(raised.value)


def test_a_missing_module_is_reported_and_a_present_one_is_not():
    require_modules("some", "msgspec", "pytest")

    with pytest.raises(MissingExtra, match="'some' is not installed"):
        require_modules("some", "msgspec", "no_such_module_anywhere")


def test_it_is_known_what_is_installed():
    assert (True, False) == (is_installed("msgspec"), is_installed("no-such-package-anywhere"))


@pytest.mark.parametrize("package", USES)
def test_an_outdated_tracker_or_dataframe_library_is_reported_with_the_install_line(tmp_path, package):
    extra, program = USES[package]
    described = tmp_path / f"{package}-0.0.1.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")

    said = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )

    assert 1 == said.returncode
    assert "or later, and 0.0.1 is installed" in said.stderr.splitlines()[-1]
    assert install_line(extra) in said.stderr.splitlines()[-1]
