from __future__ import annotations

import gzip
import json
import math
import os
import threading
import urllib.parse

import pytest

pytest.importorskip("starlette")

from crashproof import RunReader
from crashproof.reading import run_state
from crashproof.records.lines.codec import encode
from crashproof.records.rank_times import RankTime
from crashproof.rules.rank_times.comparison import compare_ranks

HOSTILE = "<script>alert(1)<-script>"


def asked(path: str, **given: object) -> str:
    return f"/api/{path}?{urllib.parse.urlencode(given)}"


@pytest.fixture
def train(tmp_path, open_tracker, update, clock):
    """A run under this test's folder, whose tracker stays open."""

    def report(name: str, first: int = 1, last: int = 20, *, loss=lambda step: 2.0, **given: object):
        tracker = open_tracker(output_dir=tmp_path / name, total_steps=100, **given)
        for step in range(first, last + 1):
            clock.advance(seconds=1)
            update(tracker, step, loss=loss(step))
        return tracker

    return report


def test_all_runs_are_listed_each_with_how_it_stands(serve, train):
    train("a/one")
    train(HOSTILE, last=5)

    runs = {run["name"]: run for run in serve().get("/api/runs").json["runs"]}

    assert {"a/one", HOSTILE} == runs.keys()
    assert (20, "running", 2.0) == tuple(runs["a/one"][name] for name in ("steps_completed", "status", "loss"))


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(serve, train, tmp_path):
    train("good")
    train("newer").close()
    with (tmp_path / "newer" / "progress" / "events.jsonl").open("ab") as file:
        file.write(encode({"event": "landed_on_mars", "timestamp": 1.0, "attempt": 1, "v": 99}))
    served = serve()

    runs = {run["name"]: run for run in served.get("/api/runs").json["runs"]}

    assert "unreadable" == runs["newer"]["health"]
    assert "Upgrade crashproof" in runs["newer"]["health_reason"]
    assert 409 == served.get(asked("run", name="newer")).status
    assert b'state="unreadable"} 1.0' in served.get("/metrics").body


def test_a_run_half_written_is_shown(serve, tmp_path):
    progress = tmp_path / "half" / "progress"
    progress.mkdir(parents=True)
    (progress / "metrics.jsonl").write_bytes(b'{"v":1,"st')

    served = serve()

    assert ["not_started"] == [run["health"] for run in served.get("/api/runs").json["runs"]]
    assert [] == served.get(asked("curve", name="half")).json["step"]


def test_a_run_that_has_ended_is_read_again_only_when_it_is_taken_up(serve, train):
    train("one", 1, 5).close()
    served = serve()
    rows = [served.get("/api/runs").json["runs"][0] for _ in range(2)]
    train("one", 6, 9)
    rows.append(served.get("/api/runs").json["runs"][0])

    assert [5, 5, 9] == [row["steps_completed"] for row in rows]
    assert ["ended_early", "ended_early", "running"] == [row["health"] for row in rows]


def test_a_run_with_a_fault_that_nobody_expected_is_a_row_and_a_log_line(serve, train, monkeypatch, caplog):
    train("good").close()
    train("odd")
    read = run_state.read_run

    def fail(folder):
        if folder.root.name == "odd":
            raise RecursionError("too deep")
        return read(folder)

    monkeypatch.setattr("crashproof.reading.session_follower.read_run", fail)
    served = serve()

    runs = {run["name"]: run for run in served.get("/api/runs").json["runs"]}

    assert "ended_early" == runs["good"]["health"]
    assert ("unreadable", "cannot be read: RecursionError The server's log says where.") == tuple(
        runs["odd"][name] for name in ("health", "health_reason")
    )
    assert ["The run odd cannot be read: RecursionError: too deep"] == [
        each.partition(" (")[0] for each in caplog.messages
    ]
    assert 409 == served.get(asked("run", name="odd")).status
    metrics = served.get("/metrics").body
    assert b'crashproof_health{run="odd",state="unreadable"} 1.0' in metrics
    assert b'crashproof_steps_completed{run="good"} 20.0' in metrics


def test_failed_saves_are_told_to_the_page_and_to_prometheus(serve, train):
    tracker = train("one")
    for step in (10, 20):
        tracker.record_checkpoint_failure(step, "no quota")
    served = serve()

    summary = served.get(asked("run", name="one")).json["summary"]
    metrics = served.get("/metrics").body

    assert ("saves_failing", 2, 20, "no quota") == (
        summary["health"],
        *(summary["failed_saves"][name] for name in ("in_a_row", "step", "error")),
    )
    assert b'crashproof_saves_failed_in_a_row{run="one"} 2.0' in metrics
    assert b'crashproof_saves_failed{run="one"} 2.0' in metrics
    assert b'crashproof_health{run="one",state="saves_failing"} 1.0' in metrics


def test_a_count_that_no_float_holds_does_not_hide_the_other_runs(serve, train, tmp_path):
    train("good").close()
    train("huge").close()
    events = tmp_path / "huge" / "progress" / "events.jsonl"
    for snapshot in ("session.json", "checkpoints.json", "progress.json"):
        (events.parent / snapshot).unlink()
    lines = [json.loads(line) for line in events.read_bytes().splitlines()]
    for line in lines:
        del line["crc"]
        if "total_steps" in line:
            line["total_steps"] = 10**400
    events.write_bytes(b"".join(encode(line) for line in lines))
    served = serve()

    assert 200 == served.get("/api/runs").status
    assert {"good", "huge"} == {run["name"] for run in served.get("/api/runs").json["runs"]}
    assert b'crashproof_steps_completed{run="good"} 20.0' in served.get("/metrics").body


@pytest.mark.parametrize(
    "raw, name",
    [
        (b"caf\xe9", "caf%E9"),
        (b"50% caf\xe9\xff", "50% caf%E9%FF"),
        (b"caf%E9", "caf%25E9"),
        (b"a%25", "a%2525"),
        (b"lr=50%", "lr=50%"),
        (b"%\xe9%e9", "%%E9%e9"),
        ("grüße\n\u202e".encode(), "grüße\n\u202e"),
    ],
)
def test_whatever_bytes_a_folder_is_called_its_pages_work(serve, train, tmp_path, raw, name):
    train("plain").close()
    (tmp_path / "plain").rename(tmp_path / os.fsdecode(raw))
    served = serve()

    names = [run["name"] for run in served.get("/api/runs").json["runs"]]

    assert [name] == names
    for path in ("run", "curve", "tail"):
        assert 200 == served.get(asked(path, name=name)).status
    # The list's name comes first where the bytes of a path could be one too.
    assert (404 if b"%E9" in raw or b"%25" in raw else 200) == served.get(
        f"/api/run?name={urllib.parse.quote(raw)}"
    ).status
    assert name in json.dumps(served.get(asked("run", name=name)).json, ensure_ascii=False).replace("\\n", "\n")
    assert 200 == served.get(asked("compare", name=name, other=name)).status
    assert b"crashproof_steps_completed" in served.get("/metrics").body


def test_a_folder_that_is_no_text_can_be_served_itself(serve, train, tmp_path):
    train("one").close()
    root = tmp_path.with_name(os.fsdecode(b"caf\xe9"))
    root.symlink_to(tmp_path)

    answer = serve(root=root).get("/api/runs").json

    assert ("one", True) == (answer["runs"][0]["name"], answer["root"].endswith("caf%E9"))


@pytest.mark.parametrize(
    "file", ["metrics.jsonl", "events.jsonl", "api_recovery.jsonl", "session.json", "writer.lock"]
)
def test_a_file_outside_the_folder_is_not_read(serve, train, tmp_path, file):
    train("inside/good")
    train("inside/odd", config={"password": "of-the-odd-one"}).close()
    train("outside", config={"password": "secret"}).close()
    progress = tmp_path / "inside" / "odd" / "progress"
    (progress / file).unlink(missing_ok=True)
    (progress / file).symlink_to(tmp_path / "outside" / "progress" / file)
    served = serve(root=tmp_path / "inside")

    runs = {run["name"]: run for run in served.get("/api/runs").json["runs"]}

    assert ("running", "unreadable") == (runs["good"]["health"], runs["odd"]["health"])
    assert f"{file} is a link that leads out of {tmp_path / 'inside'}." in runs["odd"]["health_reason"]
    assert "--follow-links" in runs["odd"]["health_reason"]
    assert {409} == {served.get(asked(path, name="odd")).status for path in ("run", "curve", "tail")}


def test_a_file_that_becomes_a_link_while_the_server_runs_is_not_read_any_more(serve, train, tmp_path):
    train("inside/one").close()
    train("outside", last=7).close()
    served = serve(root=tmp_path / "inside")
    before = served.get(asked("run", name="one")).status
    metrics = tmp_path / "inside" / "one" / "progress" / "metrics.jsonl"
    metrics.unlink()
    metrics.symlink_to(tmp_path / "outside" / "progress" / "metrics.jsonl")

    assert (200, 409) == (before, served.get(asked("curve", name="one")).status)
    assert "unreadable" == served.get("/api/runs").json["runs"][0]["health"]


@pytest.mark.parametrize("follows_links, expected", [(False, [1, []]), (True, [0, ["run"]])])
def test_links_out_of_the_folder_are_counted_or_followed(serve, train, tmp_path, follows_links, expected):
    train("outside/one").close()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "run").symlink_to(tmp_path / "outside" / "one")
    served = serve(root=tmp_path / "inside", follows_links=follows_links)

    answer = served.get("/api/runs").json

    assert expected == [answer["num_skipped"], [run["name"] for run in answer["runs"]]]
    assert [] == answer["runs"] or 200 == served.get(asked("run", name="run")).status
    assert (
        follows_links
        or [{"name": "run", "reason": "a link that leads out of the served folder"}] == answer["skipped"]
    )


def test_a_folder_without_runs_is_an_empty_list(serve):
    assert [] == serve().get("/api/runs").json["runs"]


def test_a_run_that_begins_later_is_found(serve, train):
    served = serve()
    before = served.get("/api/runs").json["runs"]
    train("late")

    found = 0
    for _ in range(200):
        found = served.get(asked("run", name="late")).status
        if found == 200:
            break
        threading.Event().wait(0.05)
    assert ([], 200) == (before, found)


def test_the_detail_of_a_run_has_everything_but_its_curves(serve, train, save_checkpoint, tmp_path):
    tracker = train("one")
    save_checkpoint(tracker, 20, path=tmp_path / "one" / "checkpoint_20.pt")
    tracker.record_evaluation(20, {"perplexity": math.inf}, seconds=1.0)
    tracker.record_api_response("key", {"a": 1}, 0.25)

    detail = serve().get(asked("run", name="one")).json

    assert (20, 0.25, "running") == tuple(
        detail["summary"][name] for name in ("steps_completed", "api_cost", "health")
    )
    assert [(20, "checkpoint_20.pt", "recorded")] == [
        (each["step"], each["path"], each["state"]) for each in detail["checkpoints"]
    ]
    assert {"model.d_model": "128", "train.batch_size": "2", "train.steps": "100"} == detail["config"]
    assert ["session_started", "attempt_started", "checkpoint_recorded", "evaluation_recorded"] == [
        each["event"] for each in detail["events"]
    ]
    assert None is detail["summary"]["evaluation"]["perplexity"]


def test_a_curve_has_each_step_once_and_marks_what_is_not_finite(serve, train):
    train("one", 1, 40, loss=lambda step: math.nan if step == 30 else float(step))
    train("one", 21, 60, loss=float)

    curve = serve().get(asked("curve", name="one")).json

    assert list(range(1, 61)) == curve["step"]
    assert [float(step) for step in range(1, 61)] == curve["series"]["loss"]["last"]
    assert [{"first_step": 21, "last_step": 40, "attempt": 2}] == curve["recomputed"]
    assert curve["is_complete"]


def test_a_nan_is_null_and_counted(serve, train):
    train("one", 1, 9, loss=lambda step: math.nan if step == 3 else 1.0)

    loss = serve().get(asked("curve", name="one")).json["series"]["loss"]

    assert (None, [[2, 1]]) == (loss["last"][2], loss["non_finite"])


def test_a_part_of_a_curve_is_asked_for_by_its_steps(serve, train):
    train("one", 1, 60)

    curve = serve().get(asked("curve", name="one", **{"from": 10, "to": 19, "points": 5})).json

    assert ([10, 12, 14, 16, 18], True, 10) == (curve["first_step"], curve["is_decimated"], curve["num_updates"])


def test_what_is_new_comes_behind_what_was_seen(serve, train):
    train("one", 1, 10)
    served = serve()
    end = served.get(asked("curve", name="one")).json["end"]
    train("one", 11, 13)

    tail = served.get(asked("tail", name="one", after=end)).json

    assert ([11, 12, 13], False) == (tail["step"], tail["is_stale"])
    assert [] == served.get(asked("tail", name="one", after=tail["end"])).json["step"]


@pytest.mark.parametrize("first, after", [(5, None), (11, 10**9)], ids=["went-back", "beyond-the-end"])
def test_a_page_that_cannot_append_is_told_to_load_its_curve_again(serve, train, first, after):
    train("one", 1, 10)
    served = serve()
    end = served.get(asked("curve", name="one")).json["end"]
    train("one", 11, 12)
    train("one", first, 12)

    assert served.get(asked("tail", name="one", after=end if after is None else after)).json["is_stale"]


def test_two_configs_are_compared_by_key(serve, train):
    train("one", config={"train": {"lr": 1, "steps": 3}, "only": "here"})
    train("two", config={"train": {"lr": 2, "steps": 3}})

    told = serve().get(asked("compare", name="one", other="two")).json["differences"]

    assert [
        {"key": "only", "this": '"here"', "other": None},
        {"key": "train.lr", "this": "1", "other": "2"},
    ] == told


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "/etc", "a/../../secret", "..%2fsecret", "secret/progress", "\0", "one/", "./one", "link"],
)
def test_no_name_leads_out_of_the_folder(serve, train, tmp_path, name):
    train("inside/one")
    train("secret")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "secret")
    served = serve(root=tmp_path / "inside")

    for path in ("run", "curve", "tail", "live"):
        answer = served.get(asked(path, name=name))
        assert (404, "This run does not exist (any more).") == (answer.status, answer.json["error"])
    assert 404 == served.get(asked("compare", name="one", other=name)).status


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/page/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cetc"),
        *("//etc/passwd", "/uplot/LICENSE", "/app.py", "/index.html/", "/.git/config"),
    ],
)
def test_no_file_is_served_but_the_pages_own(serve, path):
    answer = serve().get(path)

    assert 404 == answer.status
    assert b"root:" not in answer.body


@pytest.mark.parametrize("value", ["-1", "1e9", "x", "", "9" * 40, "1.5", "٣"])
@pytest.mark.parametrize("name", ["points", "from", "to", "after"])
def test_an_invalid_number_is_refused(serve, train, name, value):
    train("one")
    path = "tail" if name == "after" else "curve"

    answer = serve().get(asked(path, name="one", **{name: value}))

    assert (400, f"{name} must be an integer of at least 0.") == (answer.status, answer.json["error"])


def test_hostile_text_comes_as_json_and_never_as_a_page(serve, train):
    train(HOSTILE, config={"<img src=x onerror=alert(1)>": "</script><script>alert(1)</script>"})
    served = serve()

    for path in ("runs", "run", "curve", "tail"):
        answer = served.get(asked(path, name=HOSTILE))
        assert ("application/json", 200) == (answer.headers["content-type"], answer.status)
        json.loads(answer.body)


def test_the_whole_page_is_less_than_100_kb_compressed(serve):
    served = serve()
    paths = ("/", "/page.css", "/page.js", "/charts.js", "/words.js", "/uplot.js", "/uplot.css", "/icon.svg")

    answers = [served.get(path, Accept_Encoding="gzip") for path in paths]

    total = sum(len(answer.body) for answer in answers)
    print(f"page: {total:,} bytes compressed")
    assert {200} == {answer.status for answer in answers}
    assert total < 100_000
    assert b"</html>" in gzip.decompress(answers[0].body)


def test_the_page_refers_to_no_other_host(serve):
    served = serve()
    own = [served.get(path).body for path in ("/", "/page.css", "/page.js", "/charts.js", "/words.js")]

    assert [] == [
        each for each in own if b"https://" in each or b"http://" in each.replace(b"http://www.w3.org", b"")
    ]


def test_prometheus_reads_which_rank_is_slow(serve, train):
    tracker = train("ranks")
    ranks = [RankTime(rank=rank, host="a", seconds=0.1 + rank / 40, most_seconds=1.0) for rank in range(3)]
    tracker.record_rank_times(compare_ranks(ranks, step=30, num_steps=25, step_seconds=0.2))
    served = serve()
    text = served.get("/metrics").body.decode()

    assert 'crashproof_slowest_rank{run="ranks"} 2.0' in text
    assert 'crashproof_slowest_rank_ratio{run="ranks"} 1.2' in text
    assert 2 == served.get(asked("run", name="ranks")).json["summary"]["rank_times"]["slowest"][0]["rank"]


def test_prometheus_reads_every_run_whatever_its_name(serve, train):
    name = 'a "quoted" \\ name'
    train(name)
    served = serve()

    text = served.get("/metrics").body.decode()

    assert 'crashproof_steps_completed{run="a \\"quoted\\" \\\\ name"} 20.0' in text
    assert 'crashproof_health{run="a \\"quoted\\" \\\\ name",state="running"} 1.0' in text
    assert served.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_reading_changes_nothing(serve, train, tmp_path):
    train("one").close()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    served = serve()
    for path in ("/api/runs", asked("run", name="one"), asked("curve", name="one"), "/metrics"):
        served.get(path)

    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_many_looks_at_once_agree(serve, train):
    train("one", 1, 90)
    served = serve()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(served.get(asked("curve", name="one")).json["step"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [list(range(1, 91))] * 8 == answers


def test_the_history_on_the_page_is_the_readers(serve, train, tmp_path):
    for first, last in [(1, 700), (301, 500), (450, 900)]:
        train("one", first, last, loss=lambda step: 1.0 / step)

    curve = serve().get(asked("curve", name="one")).json

    history = list(RunReader.open(tmp_path / "one").history())
    assert [each.step for each in history] == curve["step"]
    assert pytest.approx([each.loss for each in history], rel=1e-6) == curve["series"]["loss"]["last"]


def test_pipes_in_the_place_of_files_hold_no_page_up(serve, train, tmp_path):
    train("good")
    for number, name in enumerate(("metrics.jsonl", "events.jsonl", "session.json", "writer.lock")):
        train(f"bad_{number}").close()
        path = tmp_path / f"bad_{number}" / "progress" / name
        path.unlink()
        os.mkfifo(path)
    served = serve()

    for _ in range(60):
        rows = {run["name"]: run for run in served.get("/api/runs").json["runs"]}
    for number in range(4):
        served.get(asked("curve", name=f"bad_{number}"))

    assert "unreadable" == rows["bad_0"]["health"]
    assert "a named pipe" in rows["bad_0"]["health_reason"]
    assert "running" == rows["good"]["status"]
