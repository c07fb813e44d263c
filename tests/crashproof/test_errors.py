from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest

from crashproof import errors

HERE = Path("runs/a")
EXAMPLES = [
    errors.CheckpointDamaged(HERE, reason="it is torn"),
    errors.CheckpointMismatch(HERE, reason="another shape"),
    errors.ConfigChanged(HERE, changed=["lr: 1 → 2"]),
    errors.DataError(HERE, "no text", line=3, hint="Add one."),
    errors.DiskFull(HERE, needed_bytes=10, free_bytes=5),
    errors.MissingExtra("torch", install="pip install 'crashproof[torch]'"),
    errors.NewerFormat(HERE, found=2, known=1),
    errors.NoUsableCheckpoint(HERE, refused=[("checkpoint_5.pt", "it is missing")]),
    errors.NotARun(HERE),
    errors.RunClosed(HERE, why="is closed"),
    errors.RunInUse(HERE, host="box", pid=7),
    errors.StorageUnwritable(HERE, reason="read-only"),
    errors.TeacherRefused("http://teacher/v1", status=403, reason="HTTP 403", hint="Check the key."),
    errors.TeacherUnreachable("http://teacher/v1", attempts=2, seconds=3.0, last="no connection", is_away=True),
    errors.RankLost("saving", missing=[1], seconds=5.0, reason="it is silent"),
]


def test_the_tree_that_is_drawn_is_the_tree_that_is_defined():
    drawn = set(re.findall(r"\b[A-Z]\w+(?= {2,}|\n|$)", errors.__doc__ or "", flags=re.MULTILINE))
    defined = set(errors.__all__)

    assert defined == drawn & defined


def test_every_error_has_one_root():
    kinds = [getattr(errors, name) for name in errors.__all__]

    assert [] == [kind.__name__ for kind in kinds if not issubclass(kind, errors.CrashproofError)]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_says_what_happened_where_and_what_to_do(error):
    assert error.message
    assert error.hint
    assert f"{error.message} {error.hint}" == str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"]
)
def test_an_error_passes_to_another_process_as_it_is(error, through):
    again = through(error)

    assert (type(error), str(error), error.args) == (type(again), str(again), again.args)
    assert vars(error) == vars(again)


def test_an_error_without_a_hint_ends_after_its_message():
    assert "No." == str(errors.CrashproofError("No."))


def test_a_missing_extra_is_also_an_import_error_and_names_the_install_line():
    error = errors.MissingExtra("torch", install="pip install it")

    assert isinstance(error, ImportError)
    assert "Run: pip install it" in str(error)


@pytest.mark.parametrize(
    "error, expected",
    [
        pytest.param(errors.DiskFull(HERE), "could not be written.", id="nothing-known"),
        pytest.param(errors.DiskFull(HERE, needed_bytes=2000), "2,000 bytes were needed.", id="needed"),
        pytest.param(
            errors.DiskFull(HERE, needed_bytes=2000, free_bytes=0),
            "2,000 bytes were needed. 0 bytes are free.",
            id="both",
        ),
    ],
)
def test_a_full_disk_says_how_much_is_missing(error, expected):
    assert error.message.endswith(expected)


def test_an_error_in_data_names_file_and_line():
    assert "data.jsonl, line 3: no text." == str(errors.DataError(Path("data.jsonl"), "no text", line=3))
    assert "data.jsonl: it is empty." == str(errors.DataError(Path("data.jsonl"), "it is empty"))
