"""One file per framework whose training loops crashproof keeps."""
