"""Reports: the values, their wording, JSON, HTML and comparison."""
