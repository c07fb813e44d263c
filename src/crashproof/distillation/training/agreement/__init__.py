"""What the processes of a training run must agree in: before they join, before the first step, and now and then."""
