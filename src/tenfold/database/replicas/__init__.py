"""Read replicas: routing of reads and writes, and consistency tokens."""
