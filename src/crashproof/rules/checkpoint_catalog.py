"""The checkpoints of one session."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint, RemovedCheckpoint, SuspectCheckpoint
from crashproof.records.events import (
    CheckpointHashed,
    CheckpointRecorded,
    CheckpointRemoved,
    CheckpointsDeleted,
    CheckpointSetAside,
    CheckpointSuspected,
    ResumeChosen,
)
from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.session import Evaluation, Timeline, TrainingSession

__all__ = ["BAD_LOSS", "CheckpointCatalog", "CheckpointEvent", "is_healthy", "with_evaluation"]

BAD_LOSS = "bad_loss"
"""The tag of a checkpoint that was taken while the loss was bad."""

_MOST_OVERWRITTEN = 2
"""Of one path."""

CheckpointEvent = (
    CheckpointRecorded
    | CheckpointHashed
    | ResumeChosen
    | CheckpointSetAside
    | CheckpointSuspected
    | CheckpointRemoved
    | CheckpointsDeleted
)


class CheckpointCatalog:
    """All that a session knows of its checkpoints; nobody else joins or changes the session's collections of them.

    A checkpoint is one record: a path, a step, and the moment it was recorded. Several may stand at one step (a
    periodic one beside the best), and a path holds one: a newer record of a path replaces the older one. The newest
    two that were replaced are remembered as *overwritten*: their bytes may still be kept.

    A checkpoint is *abandoned* once training has gone back behind it: a later attempt, or the same one after it went
    back, has reported a step that the checkpoint already contains. Where it is resumed, it is offered after all
    others; one that was taken while the loss was bad, after the healthy ones; a *suspect* one, from which resumes
    died without progress, after all of those.
    """

    def __init__(self, session: TrainingSession) -> None:
        self._session = session

    def __len__(self) -> int:
        return len(self._session.checkpoints) + len(self._session.checkpoints_beside)

    def all(self) -> list[CheckpointMetadata]:
        """Every checkpoint, the oldest step first."""
        known = [*self._session.checkpoints.values(), *self._session.checkpoints_beside]
        return sorted(known, key=_age)

    def at_path(self, path: str) -> CheckpointMetadata | None:
        """The checkpoint that was recorded under a path, as records spell it."""
        return next((each for each in self.all() if each.checkpoint_path == path), None)

    def at_step(self, step: int) -> list[CheckpointMetadata]:
        """Those of a step, the newest record last."""
        return [each for each in self.all() if each.checkpoint_step == step]

    def is_abandoned(self, checkpoint: CheckpointMetadata) -> bool:
        """Whether training has gone back behind a checkpoint since it was recorded."""
        own = (checkpoint.attempt, checkpoint.rewinds)
        return any(
            (each.attempt, each.rewinds) > own and each.first_step < checkpoint.next_step
            for each in self._session.timelines
        )

    def standing(self) -> list[CheckpointMetadata]:
        """Those on the timeline that training is on, the oldest step first."""
        return [each for each in self.all() if not self.is_abandoned(each)]

    def newest(self) -> CheckpointMetadata | None:
        """The one that a restart tries first."""
        return max(self.all(), key=self._rank, default=None)

    def candidates(self) -> list[CheckpointMetadata]:
        """All in the order in which a restart tries them: the newest first, abandoned and then suspect ones last.

        Those that were overwritten are among them.
        """
        return sorted([*self.all(), *self.overwritten()], key=self._rank, reverse=True)

    def suspicion_of(self, checkpoint: CheckpointMetadata) -> str:
        """Why a checkpoint is suspect; empty if it is not."""
        own = (checkpoint.checkpoint_path, checkpoint.created_at)
        known = self._session.checkpoints_suspect
        return next((each.reason for each in known if (each.checkpoint_path, each.created_at) == own), "")

    def to_go_back_to(self, before_step: int) -> list[CheckpointMetadata]:
        """The healthy ones of the timeline that training is on which do not contain a step, the newest first."""
        return [each for each in reversed(self.standing()) if each.checkpoint_step < before_step and is_healthy(each)]

    def overwritten(self) -> list[CheckpointMetadata]:
        """Records with a digest whose path a newer record has taken; only bytes kept elsewhere can be theirs."""
        return list(self._session.checkpoints_overwritten)

    def quarantined(self) -> list[RefusedCheckpoint]:
        """Those that were moved into quarantine, and why."""
        return list(self._session.checkpoints_set_aside)

    def being_removed(self) -> list[RemovedCheckpoint]:
        """Those that a removal named and that are not known to be deleted."""
        return list(self._session.checkpoints_removing)

    def moment_after(self, now: float) -> float:
        """A moment for a new record, in seconds since 1970, that no other record has: it tells records apart."""
        newest = max((each.created_at for each in self.candidates()), default=-math.inf)
        return now if now > newest else math.nextafter(newest, math.inf)

    def has_lowest_loss(self, checkpoint: CheckpointMetadata) -> bool:
        """Whether its loss is below that of every other one that stands, and of those that were removed.

        NaN is below nothing. One of the same step does not count: computed again, a step is as good as it was.
        """
        loss = _loss(checkpoint)
        others = [_loss(each) for each in self.standing() if each.checkpoint_step != checkpoint.checkpoint_step]
        if self._session.lowest_loss_removed is not None:
            others.append(self._session.lowest_loss_removed)
        # Against NaN anything is better.
        return not math.isnan(loss) and not any(each <= loss for each in others)

    def apply(self, event: CheckpointEvent) -> None:
        """Take in what the journal says of a checkpoint."""
        match event:
            case CheckpointRecorded():
                self._record(event)
            case CheckpointHashed():
                self._complete(event)
            case ResumeChosen():
                self._verify(event)
            case CheckpointSetAside():
                self._quarantine(event)
            case CheckpointSuspected():
                self._suspect(event)
            case CheckpointRemoved():
                self._remove(event)
            case CheckpointsDeleted():  # pragma: no branch - there is no other.
                self._session.checkpoints_removing = event.left
        self.refresh()

    def apply_evaluation(self, evaluation: Evaluation) -> None:
        """Put an evaluation beside the checkpoints that its own attempt saved at its step."""
        self._store([with_evaluation(each, [evaluation]) for each in self.all()])

    def begin_timeline(self, timeline: Timeline) -> None:
        """Note where training goes on; older timelines that begin at or after this one add nothing to it."""
        session = self._session
        session.timelines = [each for each in session.timelines if each.first_step < timeline.first_step]
        session.timelines.append(timeline)
        session.timelines.sort(key=lambda each: (each.attempt, each.rewinds))
        self.refresh()

    def remember(self, checkpoints: Iterable[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """Add those of a snapshot whose events were lost; return what was added."""
        gone = {each.checkpoint_path for each in self.quarantined()}
        gone |= {each.checkpoint_path for each in self.being_removed()}
        added = []
        for each in sorted(checkpoints, key=_age):
            if each.checkpoint_path not in gone and self.at_path(each.checkpoint_path) is None:
                self._store([*self.all(), each])
                added.append(each)
        self.refresh()
        return added

    def refresh(self) -> None:
        """Derive what `session.json` says of all checkpoints together."""
        session = self._session
        session.checkpoints_superseded = [
            step for step, each in session.checkpoints.items() if self.is_abandoned(each)
        ]
        newest = self.newest()
        session.last_checkpoint_step = None if newest is None else newest.checkpoint_step

    def _record(self, event: CheckpointRecorded) -> None:
        session, recorded = self._session, event.checkpoint
        self._overwrite(recorded)
        # A file that is written over at every save holds the newest checkpoint only.
        others = [each for each in self.all() if each.checkpoint_path != recorded.checkpoint_path]
        self._store([*others, recorded])
        session.checkpoints_removing = [
            each for each in session.checkpoints_removing if each.checkpoint_path != recorded.checkpoint_path
        ]

    def _overwrite(self, recorded: CheckpointMetadata) -> None:
        """Remember the record whose file a new one has replaced; of each path the newest two."""
        known = self.at_path(recorded.checkpoint_path)
        replaced = [*self.overwritten()] if known is None or known.digest is None else [*self.overwritten(), known]
        # A journal may hold a record twice, where a tool has doubled its lines.
        own = [each for each in replaced if _is_older(each, recorded)]
        others = [each for each in replaced if each.checkpoint_path != recorded.checkpoint_path]
        self._session.checkpoints_overwritten = [*others, *own[-_MOST_OVERWRITTEN:]]

    def _complete(self, event: CheckpointHashed) -> None:
        """Add a digest that was computed in the background, unless another record has taken the path meanwhile."""
        known = self._find(event.checkpoint_path, event.step, event.created_at)
        if known is None or known.digest is not None:
            return
        hashed = msgspec.structs.replace(
            known,
            num_bytes=event.num_bytes,
            digest=event.digest,
            files=event.files,
            stats=msgspec.UNSET,
            verified=event.verified,
        )
        self._replace(known, hashed)

    def _verify(self, event: ResumeChosen) -> None:
        """Note which files were found intact: those of a copied run are others than were recorded."""
        known = self._find(event.checkpoint_path, event.step, event.created_at)
        if known is not None and event.verified is not msgspec.UNSET:
            self._replace(known, msgspec.structs.replace(known, verified=event.verified))

    def _replace(self, known: CheckpointMetadata, newer: CheckpointMetadata) -> None:
        self._store([newer if each is known else each for each in self.all()])

    def _quarantine(self, event: CheckpointSetAside) -> None:
        known = self._find(event.checkpoint_path, event.step, event.created_at)
        if known is None:
            return
        self._store([each for each in self.all() if each is not known])
        self._session.checkpoints_set_aside.append(
            RefusedCheckpoint(checkpoint_step=event.step, checkpoint_path=event.checkpoint_path, reason=event.reason)
        )

    def _suspect(self, event: CheckpointSuspected) -> None:
        own = (event.checkpoint_path, event.created_at)
        others = [
            each for each in self._session.checkpoints_suspect if (each.checkpoint_path, each.created_at) != own
        ]
        if event.is_suspect:
            others.append(
                SuspectCheckpoint(
                    checkpoint_step=event.step,
                    checkpoint_path=event.checkpoint_path,
                    created_at=event.created_at,
                    reason=event.reason,
                )
            )
        self._session.checkpoints_suspect = others

    def _remove(self, event: CheckpointRemoved) -> None:
        session = self._session
        gone = {(each.step, each.checkpoint_path) for each in event.checkpoints}
        removed = [each for each in self.all() if (each.checkpoint_step, each.checkpoint_path) in gone]
        losses = [_loss(each) for each in removed if math.isfinite(_loss(each))]
        if session.lowest_loss_removed is not None:
            losses.append(session.lowest_loss_removed)
        session.lowest_loss_removed = min(losses, default=None)
        paths = {each.checkpoint_path for each in removed}
        session.checkpoints_overwritten = [each for each in self.overwritten() if each.checkpoint_path not in paths]
        self._store([each for each in self.all() if each not in removed])
        session.checkpoints_removing = event.checkpoints

    def _find(self, path: str, step: int, created_at: float | None) -> CheckpointMetadata | None:
        """The record that an event is about; one without a moment is about the record that has the path now."""
        known = self.at_path(path)
        if known is None or known.checkpoint_step != step:
            return None
        return known if created_at is None or known.created_at == created_at else None

    def _rank(self, checkpoint: CheckpointMetadata) -> tuple[bool, bool, bool, int, float]:
        is_standing = not self.is_abandoned(checkpoint)
        return not self.suspicion_of(checkpoint), is_standing, is_healthy(checkpoint), *_age(checkpoint)

    def _store(self, checkpoints: Iterable[CheckpointMetadata]) -> None:
        """Lay them out as `session.json` has them: the newest record of each step by its step, all others beside."""
        by_step: dict[int, CheckpointMetadata] = {}
        beside: list[CheckpointMetadata] = []
        for each in sorted(checkpoints, key=_age):
            if each.checkpoint_step in by_step:
                beside.append(by_step[each.checkpoint_step])
            by_step[each.checkpoint_step] = each
        self._session.checkpoints, self._session.checkpoints_beside = by_step, beside


def is_healthy(checkpoint: CheckpointMetadata) -> bool:
    """Whether the loss was not known to be bad when it was taken."""
    return BAD_LOSS not in checkpoint.recovery_tags


def with_evaluation(checkpoint: CheckpointMetadata, evaluations: Iterable[Evaluation]) -> CheckpointMetadata:
    """The checkpoint with all that its own attempt has measured at its step; of each name the newest result."""
    for evaluation in evaluations:
        if (evaluation.step, evaluation.attempt) == (checkpoint.checkpoint_step, checkpoint.attempt):
            results = (checkpoint.evaluation or {}) | evaluation.results
            names = nonfinite_names({"evaluation": results})
            checkpoint = msgspec.structs.replace(checkpoint, evaluation=results, nonfinite=names or msgspec.UNSET)
    return checkpoint


def _age(checkpoint: CheckpointMetadata) -> tuple[int, float]:
    return checkpoint.checkpoint_step, checkpoint.created_at


def _is_older(checkpoint: CheckpointMetadata, newer: CheckpointMetadata) -> bool:
    """Whether a record was made before another one of the same path."""
    return checkpoint.checkpoint_path == newer.checkpoint_path and checkpoint.created_at < newer.created_at


def _loss(checkpoint: CheckpointMetadata) -> float:
    return math.nan if checkpoint.metrics is None else checkpoint.metrics.loss
