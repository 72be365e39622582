"""From evidence to ranked bottlenecks."""
