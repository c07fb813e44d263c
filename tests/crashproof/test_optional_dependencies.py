from __future__ import annotations

import os
import subprocess
import sys

import pytest

from crashproof.errors import MissingExtra
from crashproof.optional_dependencies import is_installed, require_versions

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
    "lowest, extra", [({"msgspec": "0.1"}, "x"), ({"msgspec": "0.20", "pytest": "9.0"}, "x")], ids=["one", "several"]
)
def test_what_is_there_in_a_version_that_fits_is_let_through(lowest, extra):
    require_versions(extra, lowest)


def test_an_older_version_is_named():
    with pytest.raises(MissingExtra, match=r"another version than msgspec \S+\. pip install 'crashproof\[some\]'"):
        require_versions("some", {"msgspec": "1000.0"})


def test_what_is_not_there_is_said_with_the_install_line():
    with pytest.raises(MissingExtra, match=r"pip install 'crashproof\[some\]'"):
        require_versions("some", {"no-such-package-anywhere": "1.0"})


def test_it_is_known_what_is_installed():
    assert (True, False) == (is_installed("msgspec"), is_installed("no-such-package-anywhere"))


@pytest.mark.parametrize("package", USES)
def test_a_tracker_or_a_library_of_frames_that_is_too_old_is_told_with_the_install_line(tmp_path, package):
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
    assert f"another version than {package} 0.0.1" in said.stderr.splitlines()[-1]
    assert f"pip install 'crashproof[{extra}]'" in said.stderr.splitlines()[-1]
