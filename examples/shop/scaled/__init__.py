"""The shop with tenfold's patterns: the API, the data and the answers of `naive`."""
