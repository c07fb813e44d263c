"""One file per framework whose training loops holdfast keeps."""
