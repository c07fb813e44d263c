"""What goes over the wire to a teacher, and what comes back."""
