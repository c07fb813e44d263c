from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.records.bad_steps import DataWindow
from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, FileStat, RemovedCheckpoint
from crashproof.records.events import (
    AnswersRecovered,
    CheckpointHashed,
    CheckpointRecorded,
    Event,
    EventRecord,
    SessionStarted,
)
from crashproof.records.lines.checksummed_line import CHECKSUM_BYTES, add_checksum, is_intact
from crashproof.records.lines.codec import decode, encode, nonfinite_names
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.rank_times import RankTime, RankTimes
from crashproof.records.requests import (
    AnswerMarked,
    AnswerRecord,
    OpenRequest,
    RequestEvent,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
    Spending,
)
from crashproof.records.session import AttemptRecord, Evaluation, PacePoint
from crashproof.records.snapshots import JournalMark, Manifest, SessionFile
from crashproof.records.states import AlertKind, AttemptState, BadStepAction, BadStepCause, SessionKind
from crashproof.records.supervision import Action, EndCause
from crashproof.records.version import FORMAT_VERSION, NAMED_DIGESTS

numbers = st.floats(allow_nan=True, allow_infinity=True)
NUMBERS_AS_TEXT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def snapshot(**known: Any) -> MetricsSnapshot:
    usual: dict[str, Any] = {
        "step": 7,
        "timestamp": 1000.0,
        "wall_clock_hours": 0.5,
        "loss": 2.5,
        "loss_components": {"kd": 2.0},
        "learning_rate": 0.1,
        "samples_processed": 56,
        "tokens_processed": 700,
    }
    line = MetricsSnapshot(**(usual | known))
    names = nonfinite_names(msgspec.to_builtins(line))
    return msgspec.structs.replace(line, nonfinite=names or msgspec.UNSET)


def metadata(**known: Any) -> CheckpointMetadata:
    usual: dict[str, Any] = {
        "checkpoint_step": 7,
        "checkpoint_path": "checkpoint_7.pt",
        "created_at": 1000.0,
        "metrics": snapshot(),
        "dataset_position": 56,
        "recovery_tags": ["periodic", "best_loss"],
        "attempt": 1,
    }
    return CheckpointMetadata(**(usual | known))


def session_file(**known: Any) -> SessionFile:
    usual: dict[str, Any] = {
        "session_id": "training_1",
        "start_time": 1000.0,
        "config": {"train": {"lr": 0.1}},
        "config_hash": "abc",
        "total_steps_target": 10,
        "saved_at": 2000.0,
        "journals": {"metrics.jsonl": JournalMark(num_bytes=9, num_lines=1, last_line_crc="00000000")},
    }
    return SessionFile(**(usual | known))


ASKED: dict[str, Any] = {"timestamp": 1.0, "session_id": "s", "attempt": 1, "prompt_hash": "p"}


def answer(**known: Any) -> AnswerRecord:
    return AnswerRecord(**(ASKED | {"cost": Decimal("0.1"), "response": {}} | known))


HASHED = CheckpointHashed(
    timestamp=1.0, attempt=1, step=5, checkpoint_path="a", num_bytes=5, digest="sha256:5a", files=None
)


def read_back(record: Any, kind: Any = None) -> Any:
    return decode(encode(record), msgspec.json.Decoder(kind or type(record)))


def strict(line: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(line, parse_constant=refuse)


RECORDS = [
    pytest.param(snapshot(), id="update"),
    pytest.param(
        snapshot(throughput_samples_per_sec=1.5, throughput_tokens_per_sec=9.0), id="update-with-throughput"
    ),
    pytest.param(metadata(), id="checkpoint"),
    pytest.param(
        metadata(num_bytes=5, digest="blake3:5a", files={"a": FileDigest(num_bytes=5, digest="blake3:aa")}),
        id="folder-checkpoint",
    ),
    pytest.param(
        metadata(evaluation={"f1": 0.5, "a.b": math.inf}, nonfinite={"evaluation.a.b": "Infinity"}),
        id="evaluated-checkpoint",
    ),
    pytest.param(answer(response={"choices": [{"text": "é"}]}), id="answer"),
    pytest.param(
        answer(
            cost=Decimal("0.000000000001"),
            request_id="r1",
            request={"base_url": "http://localhost/v1", "sample": 0, "body": {"model": "m", "temperature": 0.5}},
            raw="<html>",
            problem="no JSON",
        ),
        id="answer-of-no-use-to-a-request",
    ),
    pytest.param(
        RequestSent(**ASKED, request_id="r1", model="m", most=Decimal("98765.432109876543")), id="request-sent"
    ),
    pytest.param(RequestRefused(**ASKED, request_id="r1", reason="HTTP 400"), id="request-refused"),
    pytest.param(RequestLost(**ASKED, request_id="r1", reason="it broke"), id="request-lost"),
    pytest.param(AnswerMarked(**ASKED, problem="too short", cost=Decimal("0.10")), id="answer-marked"),
    pytest.param(
        Manifest(session_id="s", checkpoints={7: metadata()}, last_checkpoint_step=7, saved_at=1.0), id="manifest"
    ),
    pytest.param(
        session_file(
            checkpoints={7: metadata()},
            checkpoints_removing=[RemovedCheckpoint(step=3, checkpoint_path="checkpoint_3.pt")],
            lowest_loss_removed=2.5,
            metrics_history=[snapshot()],
            evaluations=[
                Evaluation(
                    step=7,
                    attempt=1,
                    timestamp=1.0,
                    results={"nonfinite": -math.inf},
                    nonfinite={"results.nonfinite": "-Infinity"},
                )
            ],
            attempts=[AttemptRecord(attempt=1, start=1.0)],
            pace=[PacePoint(0.0, 0), PacePoint(1.5, 2)],
            api_cost=Decimal("98765.432109876543"),
            api_requests_open={"r1": OpenRequest(attempt=1, most=Decimal("0.1"))},
        ),
        id="session",
    ),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_back_as_itself(record):
    assert record == read_back(record)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_one_line_of_strict_json(record):
    line = encode(record)

    assert is_intact(line)
    assert 1 == line.count(b"\n")
    assert "crc" == list(strict(line))[-1]


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_an_event_of_every_kind_is_read_back_as_itself(kind):
    values = {
        str: "text",
        int: 3,
        float: 0.5,
        Decimal: Decimal("98765.432109876543"),
        AlertKind: AlertKind.STALLED,
        AttemptState: AttemptState.COMPLETED,
        EndCause: EndCause.HANG,
        Action: Action.RESTART,
        bool: True,
        SessionKind: SessionKind.GENERATION,
        list[RemovedCheckpoint]: [RemovedCheckpoint(step=3, checkpoint_path="checkpoint_3.pt")],
        Spending: Spending(answers=1, spent=Decimal("0.1")),
        dict[str, Any]: {"a": 1},
        dict[str, float]: {"f1": 0.5},
        dict[str, str] | msgspec.UnsetType: msgspec.UNSET,
        dict[str, FileStat] | msgspec.UnsetType: {".": FileStat(3, 4, 5)},
        int | msgspec.UnsetType: 3,
        float | msgspec.UnsetType: 2.5,
        str | msgspec.UnsetType: "text",
        list[str]: ["a: 1 → 2"],
        BadStepAction: BadStepAction.ROLLED_BACK,
        BadStepCause: BadStepCause.SPIKE,
        list[DataWindow]: [DataWindow(8, 16)],
        RankTimes: RankTimes(
            step=4,
            num_steps=3,
            num_ranks=2,
            step_seconds=0.5,
            least_seconds=0.1,
            median_seconds=0.2,
            high_seconds=0.4,
            slowest=[RankTime(rank=1, host="b", seconds=0.4, most_seconds=0.45)],
        ),
    }
    fields = {
        name: metadata() if name == "checkpoint" else values.get(hint)
        for name, hint in msgspec_hints(kind).items()
        if name != "v"
    }
    event = kind(**fields)

    assert event == read_back(event, Event)
    assert {"event", "timestamp", "attempt", "v"} <= strict(encode(event)).keys()


def msgspec_hints(kind: type) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def test_all_kinds_of_events_are_in_the_union():
    assert set(EventRecord.__subclasses__()) == set(get_args(Event))


def test_all_lines_about_requests_are_in_the_union_and_distinct():
    lines = [each.values[0] for each in RECORDS if isinstance(each.values[0], RequestEvent)]

    assert set(RequestEvent.__subclasses__()) == set(get_args(RequestLine)) == {type(line) for line in lines}
    assert lines == [read_back(line, RequestLine) for line in lines]


@pytest.mark.parametrize("record", [each for each in RECORDS if not isinstance(each.values[0], CheckpointMetadata)])
def test_whatever_is_a_line_or_a_file_names_its_version(record):
    digests = (SessionFile, Manifest, CheckpointHashed)
    expected = NAMED_DIGESTS if isinstance(record, digests) else FORMAT_VERSION

    assert expected == strict(encode(record))["v"]


@pytest.mark.parametrize("digest, expected", [(None, FORMAT_VERSION), ("blake3:5a", NAMED_DIGESTS)])
def test_a_checkpoint_that_earlier_versions_cannot_verify_has_a_version_that_they_refuse(digest, expected):
    event = CheckpointRecorded(timestamp=1.0, attempt=1, checkpoint=metadata(digest=digest), seconds=0.5)

    assert expected == strict(encode(event))["v"]
    assert expected == read_back(event, Event).v


def test_the_fields_of_a_metrics_line_are_the_promised_names():
    line = encode(snapshot(throughput_samples_per_sec=1.0, throughput_tokens_per_sec=2.0))

    assert [
        "v",
        "attempt",
        "step",
        "timestamp",
        "wall_clock_hours",
        "loss",
        "loss_components",
        "learning_rate",
        "samples_processed",
        "tokens_processed",
        "throughput_samples_per_sec",
        "throughput_tokens_per_sec",
        "crc",
    ] == list(strict(line))


@settings(max_examples=200)
@given(numbers, st.dictionaries(st.text(max_size=6), numbers, max_size=4), numbers)
def test_every_float_is_read_back_bit_for_bit(loss, components, learning_rate):
    line = snapshot(loss=loss, loss_components=components, learning_rate=learning_rate)
    back = read_back(line)

    assert repr(line) == repr(back)
    assert strict(encode(line))["loss"] == (loss if math.isfinite(loss) else None)


def test_names_of_what_json_cannot_hold_stand_beside_the_null():
    said = strict(encode(snapshot(loss=math.nan, loss_components={"kd": -math.inf, "ce": 1.0})))

    assert (None, {"kd": None, "ce": 1.0}) == (said["loss"], said["loss_components"])
    assert {"loss": "NaN", "loss_components.kd": "-Infinity"} == said["nonfinite"]


def test_a_line_of_finite_numbers_names_nothing():
    assert b"nonfinite" not in encode(snapshot())


def test_a_component_with_dots_in_its_name_is_restored():
    line = snapshot(loss_components={"layer.3.kd": math.inf, "layer": 1.0})

    assert line == read_back(line)


@pytest.mark.parametrize("spelling, number", NUMBERS_AS_TEXT.items(), ids=NUMBERS_AS_TEXT)
def test_numbers_deep_inside_an_answer_are_restored(spelling, number):
    response = {"choices": [{"logprobs": [0.5, number]}], "score": number}
    kept = answer(response=response, nonfinite=nonfinite_names({"response": response}))

    assert {"response.choices.0.logprobs.1": spelling, "response.score": spelling} == kept.nonfinite
    assert repr(kept) == repr(read_back(kept))


def test_numbers_inside_a_session_and_its_checkpoints_are_restored():
    bad = snapshot(loss=math.nan, loss_components={"kd": math.inf})
    session = session_file(metrics_history=[snapshot(), bad], checkpoints={7: metadata(metrics=bad)})

    assert repr(session) == repr(read_back(session))


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({"nonfinite": "skip"}, id="text"),
        pytest.param({"nonfinite": {"loss": "NaN"}, "loss": None}, id="the-same-shape-as-ours"),
        pytest.param({"nonfinite": {"loss": "what"}}, id="no-number"),
        pytest.param({"deep": [{"nonfinite": 3}]}, id="further-down"),
    ],
)
def test_a_user_may_use_the_name_nonfinite_in_a_config_or_an_answer(own):
    kept = answer(response=own, request={"base_url": "u", "sample": 0, "body": own})
    beginning = SessionStarted(timestamp=1.0, attempt=1, session_id="s", config=own, config_hash="c", total_steps=1)
    session = session_file(config=own)

    assert [kept, beginning, session] == [read_back(kept), read_back(beginning, Event), read_back(session)]


@pytest.mark.parametrize("cost", ["98765.432109876543", "0.000000000001", "1E-7", "3E+2", "0", "0.10"])
def test_an_amount_of_money_is_a_number_and_is_read_back_digit_for_digit(cost):
    plain = answer(cost=Decimal(cost), response={"logprob": 0.1})
    beside_nan = answer(
        cost=Decimal(cost), response={"logprob": math.inf, "p": 0.1}, nonfinite={"response.logprob": "Infinity"}
    )

    assert float(cost) == strict(encode(plain))["cost"]
    assert [Decimal(cost)] * 2 == [read_back(each).cost for each in (plain, beside_nan)]
    assert repr(beside_nan.response) == repr(read_back(beside_nan).response)


def test_a_session_with_a_nan_in_its_history_keeps_its_sums_digit_for_digit():
    session = session_file(
        metrics_history=[snapshot(loss=math.nan)], api_cost=Decimal("98765.432109876543"), config={"lr": 0.1}
    )

    assert repr(session) == repr(read_back(session))


def test_answers_of_a_run_without_sums_are_read():
    """A line as it was written before money was counted to the last digit."""
    line = b'{"event":"answers_recovered","timestamp":1.0,"attempt":1,"v":1,"count":4}'

    assert AnswersRecovered(timestamp=1.0, attempt=1, count=4) == decode(line, msgspec.json.Decoder(Event))


def test_a_name_that_leads_nowhere_is_passed_over():
    line = msgspec.structs.replace(snapshot(), nonfinite={"gone": "NaN", "loss_components.gone.too": "NaN"})

    assert line == read_back(line)


def test_a_loss_component_may_be_named_nonfinite():
    line = snapshot(loss_components={"nonfinite": 1.0, "kd": math.nan})

    assert repr(line) == repr(read_back(line))


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param({"loss": 1.0}, {}, id="finite"),
        pytest.param({"a": {"b": math.nan}}, {"a.b": "NaN"}, id="nested"),
        pytest.param({"a": [1.0, math.inf]}, {"a.1": "Infinity"}, id="in-a-list"),
        pytest.param({"a": (math.inf,)}, {"a.0": "Infinity"}, id="in-a-tuple"),
        pytest.param({"a": "nan", "b": None, "c": 1}, {}, id="what-is-no-float"),
        pytest.param({3: math.nan}, {"3": "NaN"}, id="a-key-that-is-no-text"),
    ],
)
def test_every_nan_and_infinity_is_named(value, expected):
    assert expected == nonfinite_names(value)


def test_a_line_of_another_kind_is_refused():
    with pytest.raises(msgspec.ValidationError):
        decode(encode(snapshot()), msgspec.json.Decoder(AnswerRecord))


def test_a_field_of_a_later_version_is_passed_over():
    line = encode(snapshot())
    richer = encode(msgspec.json.decode(line) | {"v": 1, "invented_later": [1, 2]})

    assert snapshot() == decode(richer, msgspec.json.Decoder(MetricsSnapshot))


@pytest.mark.parametrize(
    "digest, expected", [pytest.param("blake3:5a", True, id="digested"), pytest.param(None, False, id="not-digested")]
)
def test_a_checkpoint_is_verifiable_once_it_is_digested(digest, expected):
    assert expected is metadata(digest=digest).is_verifiable


@pytest.mark.parametrize("kind", [FileDigest, CheckpointMetadata, CheckpointHashed])
def test_a_record_of_before_digests_named_their_algorithm_has_a_named_one(kind):
    """Files of earlier versions have a field `sha256`, without a name."""
    line = encode(
        {
            FileDigest: FileDigest(num_bytes=5, digest="sha256:5a"),
            CheckpointMetadata: metadata(num_bytes=5, digest="sha256:5a"),
            CheckpointHashed: HASHED,
        }[kind]
    )
    older = add_checksum(line[:-CHECKSUM_BYTES].replace(b'"digest":"sha256:', b'"sha256":"') + b"}")
    read = decode(older, msgspec.json.Decoder(kind))

    assert b'"sha256":"5a"' in older
    assert "sha256:5a" == read.digest
    # What is written again has the new form.
    assert line == encode(read)


@pytest.mark.parametrize("record", [FileDigest(num_bytes=5, digest="sha256:5a"), HASHED], ids=["file", "event"])
def test_a_record_that_exists_for_its_digest_has_one(record):
    line = encode(record)[:-CHECKSUM_BYTES].replace(b'"digest":"sha256:5a"', b'"digest":""') + b"}"

    with pytest.raises(msgspec.ValidationError, match="no digest"):
        decode(add_checksum(line), msgspec.json.Decoder(type(record)))


def test_a_checkpoint_event_keeps_its_checkpoint():
    event = CheckpointRecorded(timestamp=1.0, attempt=1, checkpoint=metadata(), seconds=0.5)

    assert metadata() == read_back(event, Event).checkpoint
