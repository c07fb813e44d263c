"""Who is alerted, of what, and how."""
