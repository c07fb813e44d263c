"""The page as a person sees it, in a real browser.

With CRASHPROOF_PICTURES=docs/pictures the pictures of the documents are taken here, from real runs.
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

pytest.importorskip("playwright")
pytest.importorskip("starlette")

from crashproof import RunReader
from crashproof.dashboard.access import Access
from crashproof.records.rank_times import RankTime
from crashproof.records.states import SessionKind
from crashproof.rules.rank_times.comparison import compare_ranks

PROGRAM = Path(__file__).parents[2] / "page_program.py"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)<-script>"
TOKEN = "a-token-of-some-length"

COLORS_OF_COLUMN = """([holder, share]) => {
  const canvas = document.querySelector(holder + " canvas");
  const plot = document.querySelector(holder + " .u-over").getBoundingClientRect();
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const left = Math.round((plot.left - box.left + share * plot.width) * scale);
  const top = Math.round((plot.top - box.top) * scale);
  const pixels = canvas.getContext("2d").getImageData(left - 2, top, 5, Math.round(plot.height * scale)).data;
  const rows = [];
  for (let at = 0; at < pixels.length; at += 4) {
    const [r, g, b, a] = pixels.slice(at, at + 4);
    rows.push([Math.floor(at / 20) / (pixels.length / 20), r, g, b, a]);
  }
  return rows;
}"""
"""Around a place of a chart (0: left, 1: right), each pixel: how far down it is (0 to 1), and its colour."""


def address(served, name: str) -> str:
    return f"{served.url}#/run/{urllib.parse.quote(name, safe='')}"


def picture(page, name: str, *, height: int = 1060) -> None:
    """Take a picture for the documents, where one is asked for."""
    folder = os.environ.get("CRASHPROOF_PICTURES")
    if folder:
        area = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height}
        page.screenshot(path=Path(folder) / f"{name}.png", clip=area, full_page=True)


def start(run: Path, steps: int, seconds_a_step: float, killed_at: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(PROGRAM), str(run), str(steps), str(seconds_a_step), str(killed_at)])


def heights(page, holder: str, share: float, is_color) -> list[float]:
    """How far down there is a pixel of some colour, around a place of a chart."""
    return [row[0] for row in page.evaluate(COLORS_OF_COLUMN, [holder, share]) if row[4] > 30 and is_color(*row[1:4])]


def is_blue(red: int, green: int, blue: int) -> bool:
    return blue > red + 60


def is_orange(red: int, green: int, blue: int) -> bool:
    return red > blue + 60


def place_of(step: int, last: int, first: int = 1) -> float:
    return (step - first) / (last - first)


@pytest.fixture
def made_run(tmp_path, open_tracker, update, clock):
    """A run that is over: `steps` of them, one spike, one NaN."""

    def make(name: str, steps: int, *, spike_at: int = 0, nan_at: int = 0):
        tracker = open_tracker(output_dir=tmp_path / name, total_steps=steps)
        for step in range(1, steps + 1):
            clock.advance(seconds=0.25)
            loss = 50.0 if step == spike_at else math.nan if step == nan_at else 1.0 + math.exp(-step / (steps / 5))
            update(tracker, step, loss=loss, loss_components={"kd": 0.6 * loss, "ce": 0.4 * loss})
        tracker.close()
        return tmp_path / name

    return make


def test_all_runs_are_listed_and_a_hostile_name_is_only_text(serve, look, made_run):
    made_run("experiments/a", 30)
    made_run(HOSTILE.replace("/", ""), 20)
    page = look(serve().url)
    page.on("dialog", lambda dialog: pytest.fail("a script of a run's name ran"))

    page.wait_for_selector("text=2 runs")

    assert {"experiments/a", HOSTILE} == set(page.locator("tbody a").all_inner_texts())
    page.get_by_text(HOSTILE, exact=True).click()
    page.wait_for_selector("main[data-ready]")
    assert HOSTILE in page.locator("#head h2").inner_text()
    assert 0 == page.locator("main img, main script").count()


def test_an_empty_folder_says_that_a_run_will_appear(serve, look, tmp_path):
    page = look(serve().url)

    assert f"There is no run under {tmp_path}." in page.locator("text=There is no run under").inner_text()


@pytest.mark.timeout(180)
def test_a_live_run_is_followed_through_a_kill_and_a_resume(serve, look, tmp_path):
    run = tmp_path / "mine"
    process = start(run, 260, 0.03, killed_at=190)
    while not (run / "progress" / "metrics.jsonl").exists():
        time.sleep(0.05)
    page = look(address(serve(now=time.time), "mine"))

    page.wait_for_selector(".state:has-text('running')")
    page.wait_for_function("() => document.getElementById('link').textContent === 'live'")
    first = page.locator("#head dd").first.inner_text()
    page.wait_for_function("(first) => document.querySelector('#head dd').textContent !== first", arg=first)
    process.wait()
    page.wait_for_selector(".state:has-text('crashed')")
    assert "the process exited without recording a shutdown" in page.locator("#head").inner_text()

    process = start(run, 260, 0.03)
    page.wait_for_selector(".state:has-text('running')")
    process.wait()
    page.wait_for_selector(".state:has-text('complete')")
    page.wait_for_function(
        "() => document.getElementById('decimation').textContent.startsWith('260 updates, all shown')"
    )

    assert "1 non-finite loss" in page.locator("#decimation").inner_text()
    assert ["161 to 260", "1 to 190"] == page.locator("#attempts tbody td:nth-child(3)").all_inner_texts()
    assert "recomputed" in page.locator("#time").inner_text()
    assert ["complete", "crashed", "non finite"] == page.locator("#alerts td:nth-child(2)").all_inner_texts()
    assert not page.locator("#alarms").inner_text()
    assert "6 for $0.08" in page.locator("#teacher").inner_text()
    assert "checkpoint_240.txt" in page.locator("#checkpoints").inner_text()
    # The spike and the NaN are drawn where they belong.
    assert min(heights(page, "#chart-loss", place_of(90, 260), is_blue)) < 0.2
    assert min(heights(page, "#chart-loss", place_of(60, 260), is_blue)) > 0.3
    assert heights(page, "#chart-loss", place_of(150, 260), is_orange)
    assert not heights(page, "#chart-loss", place_of(120, 260), is_orange)
    picture(page, "resumed")
    picture(page, "first_screen", height=600)


@pytest.mark.timeout(180)
def test_one_spike_and_one_nan_among_many_steps_are_seen(serve, look, made_run):
    made_run("long", 150_000, spike_at=50_000, nan_at=100_000)
    page = look(address(serve(), "long"))
    page.wait_for_selector("main[data-ready]")

    note = page.locator("#decimation").inner_text()
    spike = heights(page, "#chart-loss", place_of(50_000, 150_000), is_blue)
    nan = heights(page, "#chart-loss", place_of(100_000, 150_000), is_orange)
    quiet = heights(page, "#chart-loss", place_of(75_000, 150_000), is_blue)

    assert re.match(
        r"150,000 updates in \d+ points: each shows the lowest, highest and mean of about \d+ updates\.", note
    )
    assert "1 non-finite loss" in note
    assert min(spike) < 0.15
    assert nan
    assert min(quiet) > 0.8
    assert "to 50" in page.locator("#chart-loss").get_attribute("aria-label")


def test_dragging_shows_a_part_step_by_step_and_a_double_click_all(serve, look, made_run):
    made_run("run", 80_000, spike_at=40_000)
    page = look(address(serve(), "run"))
    page.wait_for_selector("main[data-ready]")
    box = page.locator("#chart-loss .u-over").bounding_box()
    middle = box["y"] + box["height"] / 2

    page.mouse.move(box["x"] + 0.495 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.505 * box["width"], middle, steps=5)
    page.mouse.up()
    page.wait_for_function("() => /all shown/.test(document.getElementById('decimation').textContent)")
    near = page.locator("#decimation").inner_text()
    page.locator("#chart-loss .u-over").dblclick()
    page.wait_for_function("() => /^80,000 updates/.test(document.getElementById('decimation').textContent)")

    assert 500 < int(near.split(" ")[0].replace(",", "")) < 1100


def test_everything_can_be_done_with_keys(serve, look, made_run):
    made_run("a", 3000)
    made_run("b", 3000)
    page = look(serve().url)
    page.wait_for_selector("text=2 runs")

    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-ready]")
    page.keyboard.press("l")
    page.keyboard.press("x")
    scale = page.get_by_role("button", name="Logarithmic").get_attribute("aria-pressed")
    axis = page.locator("button", has_text="Axis").inner_text()
    page.keyboard.press("+")
    page.wait_for_function("() => /^1,5\\d\\d updates/.test(document.getElementById('decimation').textContent)")
    page.keyboard.press("0")
    page.wait_for_function("() => /^3,000 updates/.test(document.getElementById('decimation').textContent)")
    before = page.locator("output").inner_text()
    page.keyboard.press("s")
    page.keyboard.press("?")
    is_open = page.locator("#keys").get_attribute("open")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("u")
    page.wait_for_selector("text=2 runs")

    assert ("true", "Axis: hours trained", "0.90", "", "dark") == (scale, axis, before, is_open, theme)


@pytest.mark.parametrize("axis", ["hours trained", "clock"])
def test_on_every_axis_the_marks_lie_where_the_curve_is(serve, look, made_run, axis):
    made_run("run", 2000, spike_at=1000, nan_at=1500)
    page = look(address(serve(), "run"))
    page.wait_for_selector("main[data-ready]")

    while axis not in page.locator("button", has_text="Axis").inner_text():
        page.keyboard.press("x")
    page.wait_for_timeout(100)

    assert min(heights(page, "#chart-loss", 0.5, is_blue)) < 0.2
    assert heights(page, "#chart-loss", 0.75, is_orange)


def test_the_slowest_rank_is_shown(serve, look, open_tracker, update, tmp_path):
    tracker = open_tracker(output_dir=tmp_path / "ranks")
    update(tracker, 30)
    ranks = [RankTime(rank=rank, host="<b>h</b>", seconds=0.1 + rank / 50, most_seconds=1.0) for rank in range(4)]
    tracker.record_rank_times(compare_ranks(ranks, step=30, num_steps=25, step_seconds=0.2))
    page = look(serve().url)
    page.get_by_text("ranks", exact=True).click()
    page.wait_for_selector("main[data-ready]")

    assert "3 on <b>h</b>, 1.3 times the median of 4 ranks" in page.locator("#head").inner_text()


def test_a_job_that_trains_nothing_shows_no_curves(serve, look, open_tracker, clock, tmp_path):
    tracker = open_tracker({}, 300, kind=SessionKind.GENERATION, output_dir=tmp_path / "answers.run")
    for done in (40, 80, 120):
        clock.advance(60)
        tracker.record_job_progress(done)
    page = look(address(serve(), "answers.run"))
    page.wait_for_selector("main[data-ready]")

    head = page.locator("#head").inner_text()
    assert "Requests completed\n120 of 300 (40.0 %)" in head
    assert "Remaining\n4 min" in head
    assert [False] * 4 == [
        page.locator(each).is_visible() for each in ("#charts", "#learning", "#time", "#checkpoints")
    ]
    assert page.locator("#attempts").is_visible()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_on_a_phone_nothing_overflows(serve, look, made_run, save_checkpoint, width):
    made_run("experiments/a_rather_long_name_of_a_run/seed_1234567890", 300, spike_at=200)
    served = serve()
    for url in (served.url, address(served, "experiments/a_rather_long_name_of_a_run/seed_1234567890")):
        page = look(url, width=width)
        page.wait_for_selector("main h2")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 390:
        picture(page, "phone-390")


def test_dark_and_light_follow_the_system(serve, look, made_run):
    made_run("run", 300)
    served = serve()
    grounds = []
    for dark in (False, True):
        page = look(address(served, "run"), dark=dark)
        page.wait_for_selector("main[data-ready]")
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert ["rgb(255, 255, 255)", "rgb(18, 21, 26)"] == grounds
    picture(page, "dark")


def test_behind_a_proxy_that_buffers_the_stream_the_page_polls(serve, look, open_tracker, update, tmp_path):
    tracker = open_tracker(output_dir=tmp_path / "run", total_steps=100)
    for step in range(1, 11):
        update(tracker, step)
    served = serve()
    page = look(served.url)
    page.route("**/api/live*", lambda route: None)
    page.goto(address(served, "run"))

    page.wait_for_function("() => document.getElementById('link').textContent === 'polling'")
    update(tracker, 11)
    page.wait_for_function("() => /^11 updates/.test(document.getElementById('decimation').textContent)")


def test_an_unreachable_server_is_reported_on_the_page(serve, look, made_run):
    made_run("run", 30)
    page = look(address(serve(), "run"), complains="Failed to load resource")
    page.wait_for_selector("main[data-ready]")
    page.route("**/api/**", lambda route: route.abort())
    page.evaluate("window.dispatchEvent(new Event('hashchange'))")

    page.wait_for_selector("#trouble:visible")

    assert "The server does not respond. Retrying." == page.locator("#trouble").inner_text()


def test_a_run_that_is_gone_is_reported(serve, look):
    page = look(address(serve(), "nowhere"), complains="404")

    page.wait_for_selector("#trouble:visible")
    assert "This run does not exist (any more)." == page.locator("#trouble").inner_text()


def test_folders_that_were_not_searched_are_named(serve, look, made_run, tmp_path):
    made_run("inside/run", 30)
    made_run("outside", 30)
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    page = look(serve(root=tmp_path / "inside").url)

    page.click("summary:has-text('1 folder was not searched')")
    page.wait_for_timeout(3500)

    assert "link: a link that leads out of the served folder" in page.locator("#skipped").inner_text()


def test_the_printed_address_opens_the_page_and_its_live_updates(serve, look, made_run):
    made_run("run", 30)
    served = serve(access=Access.for_address("127.0.0.1", token=TOKEN))
    page = look(f"{served.url}?token={TOKEN}")
    page.get_by_role("link", name="run", exact=True).click()
    page.wait_for_function("() => document.getElementById('link').textContent === 'live'")

    assert TOKEN not in page.url
    assert [f"crashproof-{served.port}"] == [each["name"] for each in page.context.cookies(served.url)]


@pytest.mark.parametrize("query", [f"?token={TOKEN}", ""], ids=["first", "again"])
def test_a_link_on_another_site_opens_the_page_too(serve, browser, made_run, query):
    made_run("run", 30)
    served = serve(access=Access.for_address("127.0.0.1", token=TOKEN))
    context = browser.new_context()
    page = context.new_page()
    if not query:
        page.goto(f"{served.url}?token={TOKEN}")
    page.goto(f"http://localhost:{served.port}/")
    page.evaluate("(url) => { document.body.innerHTML = `<a href='${url}'>open</a>`; }", served.url + query)

    page.click("a")

    page.wait_for_selector("text=1 run")
    context.close()


def test_the_token_is_asked_for_and_taken(serve, look, made_run):
    made_run("run", 30)
    served = serve(access=Access.for_address("0.0.0.0", token=TOKEN))
    page = look(served.url, complains="401")

    page.fill("input", "not-this-one-not-this-one")
    page.click("button")
    page.wait_for_selector("text=Wrong token.")
    page.fill("input", TOKEN)
    page.click("button")
    page.wait_for_selector("text=1 run")

    assert TOKEN not in page.url


def test_configs_of_two_runs_are_compared(serve, look, tmp_path, open_tracker, update):
    for name, rate in (("one", 1), ("two", 2)):
        tracker = open_tracker(output_dir=tmp_path / name, config={"train": {"lr": rate, "seed": 7}})
        update(tracker, 1)
    page = look(address(serve(), "one"))
    page.wait_for_selector("main[data-ready]")
    page.click("summary:has-text('Config')")

    page.select_option("#config select", "two")

    page.wait_for_selector("#differences table")
    assert ["train.lr", "1", "2"] == page.locator("#differences tbody td").all_inner_texts()


def test_a_journal_that_takes_long_to_read_is_shown_as_far_as_it_has_come(serve, look, made_run):
    run = made_run("run", 120_000, spike_at=119_000)
    (run / "progress" / "curves.jsonl").unlink()
    page = look(address(serve(), "run"))

    page.wait_for_selector("main[data-ready]")
    page.wait_for_function("() => /^120,000 updates/.test(document.getElementById('decimation').textContent)")

    assert min(heights(page, "#chart-loss", place_of(119_000, 120_000), is_blue)) < 0.2


def test_what_the_page_draws_is_what_the_reader_says(serve, look, made_run):
    run = made_run("run", 500)
    page = look(address(serve(), "run"))
    page.wait_for_selector("main[data-ready]")
    losses = [line.loss for line in RunReader.open(run).history()]
    step = random.Random(3).randrange(100, 400)

    rows = heights(page, "#chart-loss", place_of(step, 500), is_blue)
    lowest, highest = min(losses), max(losses)
    share_from_top = 1 - (losses[step - 1] - lowest) / (highest - lowest)

    assert min(rows) - 0.15 <= share_from_top <= max(rows) + 0.15
