"""One file per channel that alerts are sent by."""
