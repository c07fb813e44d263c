"""Updates applied many at once say what they say one by one."""

from __future__ import annotations

import random

import msgspec
import pytest

from crashproof.records.events import AttemptStarted, SessionStarted
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.rules.session import HISTORY_LENGTH, apply_event, apply_metrics, apply_updates, begin_session

BEGINNING = SessionStarted(
    timestamp=1000.0, attempt=1, session_id="training_1", config={}, config_hash="abc", total_steps=10_000
)


def new_session(*, is_started: bool = True) -> TrainingSession:
    session = begin_session(BEGINNING)
    if is_started:
        for attempt in (1, 2, 3):
            apply_event(
                session,
                AttemptStarted(
                    timestamp=1000.0, attempt=attempt, host="a", pid=1, git_commit=None, wall_clock_hours=0.0
                ),
            )
    return session


def as_bytes(session: TrainingSession) -> bytes:
    """All of a session, with NaN and infinities distinct."""
    return msgspec.json.encode(session) + repr([each.loss for each in session.metrics_history]).encode()


def made_updates(chance: random.Random, *, odd_share: float, num_updates: int) -> list[MetricsSnapshot]:
    """What attempts report; a share of the updates is out of the ordinary."""
    step, attempt, hours, now, updates = 0, 1, 0.0, 1000.0, []
    for _ in range(num_updates):
        step += 1
        seconds = chance.choice([0.1, 1 / 3, 7.0])
        loss, is_without_loss = chance.gauss(2.0, 0.5), msgspec.UNSET
        if chance.random() < odd_share:
            match chance.randrange(8):
                case 0:
                    step = max(0, step - chance.randrange(1, 80))
                case 1:
                    step -= 1
                case 2:
                    attempt = min(3, attempt + 1)
                case 3:
                    step += chance.randrange(1, 50)
                case 4:
                    loss = chance.choice([float("nan"), float("inf"), -float("inf")])
                case 5:
                    loss, is_without_loss = float("nan"), True
                case 6:
                    seconds = -5.0
                case 7:
                    seconds = 4000.0
        now, hours = now + seconds, hours + seconds / 3600
        updates.append(
            MetricsSnapshot(
                attempt=attempt,
                step=step,
                timestamp=now,
                wall_clock_hours=int(hours * 1e7) / 1e7,
                loss=loss,
                loss_components={"kd": loss},
                learning_rate=0.1,
                samples_processed=8 * step,
                tokens_processed=64 * step,
                without_loss=is_without_loss,
            )
        )
    return updates


@pytest.mark.parametrize("odd_share", [0.0, 0.002, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("is_started", [True, False], ids=["attempts started", "no start known"])
def test_updates_at_once_and_one_by_one_make_the_same_session(odd_share: float, is_started: bool) -> None:
    for seed in range(6):
        chance = random.Random(seed)
        updates = made_updates(chance, odd_share=odd_share, num_updates=2 * HISTORY_LENGTH + 300)
        one_by_one, at_once = new_session(is_started=is_started), new_session(is_started=is_started)
        parts = [place for place, update in enumerate(updates) if apply_metrics(one_by_one, update)]
        found, place = [], 0
        while place < len(updates):
            some = updates[place : place + chance.choice([1, 2, 8, 64, 1500])]
            found += [place + part for part in apply_updates(at_once, some)]
            place += len(some)

        assert as_bytes(one_by_one) == as_bytes(at_once)
        assert parts == found


def test_a_bucket_has_the_losses_of_its_own_updates_where_most_have_none() -> None:
    updates = made_updates(random.Random(1), odd_share=0.0, num_updates=4000)
    seldom = [
        update if update.step % 30 == 0 else msgspec.structs.replace(update, loss=float("nan"), without_loss=True)
        for update in updates
    ]
    one_by_one, at_once = new_session(), new_session()
    for update in seldom:
        apply_metrics(one_by_one, update)
    apply_updates(at_once, seldom)

    assert as_bytes(one_by_one) == as_bytes(at_once)
    assert at_once.loss_buckets


def test_no_updates_change_nothing() -> None:
    session = new_session()
    before = as_bytes(session)

    assert [] == apply_updates(session, [])
    assert before == as_bytes(session)
