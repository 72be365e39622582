"""Tools of the checks: user agent, load clients, log readers."""
