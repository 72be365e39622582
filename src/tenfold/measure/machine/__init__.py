"""The machine and the processes on it, sampled from outside."""
