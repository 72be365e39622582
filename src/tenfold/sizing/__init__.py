"""From users to request rates, instances, connections, servers and costs; what breaks first on the way."""
