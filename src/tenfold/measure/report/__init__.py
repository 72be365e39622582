"""Reports: terminal words, JSON, HTML, comparison."""
