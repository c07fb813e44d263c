"""What the processes of a training run must agree in, and when they compare it."""
