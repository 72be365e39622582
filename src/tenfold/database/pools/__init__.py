"""Connection pools: who holds connections, how many there may be, and statement deadlines."""
