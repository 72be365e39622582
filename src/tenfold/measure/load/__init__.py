"""The load generator: open-loop arrivals and the process that sends them."""
