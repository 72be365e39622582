"""What PostgreSQL tells of itself: its sessions, its plans."""
