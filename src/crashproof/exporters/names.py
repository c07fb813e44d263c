"""The names of a run's values in one tracker."""

from __future__ import annotations

import logging

from crashproof.rules.naming.trackers import NameRule, tracker_name

__all__ = ["TrackerNames"]

log = logging.getLogger("crashproof")

_MOST_NAMED = 5


class TrackerNames:
    """Maps names by the rule of a tracker; says once which ones the tracker does not allow."""

    def __init__(self, rule: NameRule) -> None:
        self.rule = rule
        self._known: dict[str, str] = {}
        self._unsaid: list[str] = []

    def __getitem__(self, name: str) -> str:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = tracker_name(name, self.rule)
            if known != name:
                self._unsaid.append(name)
        return known

    def report(self) -> None:
        """Log the names that were mapped since the last report."""
        if not self._unsaid:
            return
        shown = ", ".join(f"{name!r:.80} as {self._known[name]!r}" for name in self._unsaid[:_MOST_NAMED])
        rest = f", and {len(self._unsaid) - _MOST_NAMED:,} more" if len(self._unsaid) > _MOST_NAMED else ""
        log.warning("%s does not allow every name of the run. Exported: %s%s.", self.rule.tracker, shown, rest)
        self._unsaid = []
