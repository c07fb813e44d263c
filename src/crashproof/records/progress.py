"""The summary of a run for monitors."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from crashproof.records.rank_times import RankTimes
from crashproof.records.session import FailedSaves, Goodput
from crashproof.records.states import HealthState, LossVerdict, RunStatus
from crashproof.records.supervision import Supervision

__all__ = ["GoodputShare", "LossTrend", "ProgressSummary"]


class LossTrend(Struct, frozen=True, kw_only=True):
    """The trend of the newest losses."""

    has_data: bool
    current_loss: float | None
    moving_avg_loss: float | None
    """Exponential, over 100 finite losses."""
    min_loss: float | None
    """Of the finite losses in the window; likewise `max_loss`."""
    max_loss: float | None
    window_size: int
    """Losses in the window."""
    slope_per_update: float | None = None
    slope_low: float | None = None
    """With `slope_high`, the slope's 95 % interval."""
    slope_high: float | None = None
    noise: float | None = None
    """Robust standard deviation around the slope."""
    num_non_finite: int
    is_improving: bool = False
    """Whether the verdict is `improving`; with too few losses for a verdict, whether the slope falls."""
    verdict: LossVerdict = LossVerdict.UNKNOWN
    """On all losses of the run, whatever the window."""
    confidence: float | None = None
    """How certain the direction is, from 0 to 1; None if the verdict is not about one."""
    evidence: str = ""
    """What the verdict rests on, to be read after "the loss"; the interval in it is one of 99 %."""
    verdict_window: int | None = None
    """The newest updates that the verdict rests on."""
    change: float | None = None
    """By how much the loss has changed over these, with `change_low` and `change_high` as its 99 % interval."""
    change_low: float | None = None
    change_high: float | None = None


class GoodputShare(Goodput, kw_only=True):
    """Where the wall time went, in seconds, and the productive share of it."""

    goodput_fraction: float = 0.0


class ProgressSummary(Struct, kw_only=True):
    """The fields of `progress.json`; all of them are present from the first moment of a run."""

    session_id: str
    is_job: bool
    """Whether its steps are requests of a generation job."""
    status: RunStatus
    health: HealthState
    health_reason: str
    seconds_since_update: float | None
    patience_seconds: float | None
    """After this long without an update, a run is stalled; None if no process writes it."""
    alerts_active: list[str]
    progress_pct: float
    steps_completed: int
    total_steps_target: int
    samples_processed: int
    tokens_processed: int
    elapsed_wall_clock_hours: float
    """Training time, without pauses and downtime."""
    estimated_remaining_hours: float | None
    estimated_remaining_hours_low: float | None
    estimated_remaining_hours_high: float | None
    estimated_finish_time: float | None
    """Seconds since 1970."""
    throughput_samples_per_sec: float | None
    throughput_tokens_per_sec: float | None
    learning_rate: float | None
    loss_components: dict[str, float]
    loss_trend: LossTrend
    last_update_time: float | None
    """Seconds since 1970."""
    last_checkpoint_step: int | None
    checkpoints_count: int
    failed_saves: FailedSaves
    """Those since the newest checkpoint."""
    evaluation: dict[str, float]
    """The newest results on held-out data, by name."""
    evaluation_step: int | None
    total_pause_duration_hours: float
    api_responses_saved: int
    api_responses_recovered: int
    api_cost: float
    """US dollars, like all amounts here: floats for display; the journals hold them exactly."""
    api_cost_before: float
    api_cost_saved: float
    api_cost_in_doubt: float
    api_cost_reserved: float
    api_cost_wasted: float
    api_requests_in_doubt: int
    api_responses_bad: int
    connection_failures: int
    connection_retries: int
    attempt: int
    attempt_host: str | None
    attempt_pid: int | None
    rank_times: RankTimes | None
    """How the ranks of the newest attempt compare; None where there is one alone, or no comparison yet."""
    steps_recomputed: int
    replay_differed_at: int | None
    bad_steps_found: int
    """Steps whose loss was not finite, or a spike; one that was bad again counts again."""
    rollbacks: int
    """How often training went back to a checkpoint for one."""
    samples_left_out: int
    """Of the order of samples, for bad steps."""
    newest_bad_step: str | None
    """The newest one in words: its loss, what is usual, and what was done."""
    damage_found: int
    supervision: Supervision
    """What `crashproof run` has recorded: restarts, causes, lost time."""
    goodput_seconds: GoodputShare
    lines_waiting: int | UnsetType = UNSET
    """Lines that wait for space on the disk; only the run's writer reports it."""

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.progress_pct >= 100.0

    @property
    def place(self) -> str:
        """`step 1,200 of 5,000`; of a generation job, `request 1,200 of 5,000`."""
        unit = "request" if self.is_job else "step"
        return f"{unit} {self.steps_completed:,} of {self.total_steps_target:,}"
