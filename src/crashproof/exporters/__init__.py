"""The history of a run in the trackers that people already use: one file per tracker."""
