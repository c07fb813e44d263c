"""What is kept on disk so that memory stays small."""
