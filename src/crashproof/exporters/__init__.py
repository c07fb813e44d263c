"""Export a run's history to other trackers: one file per tracker."""
