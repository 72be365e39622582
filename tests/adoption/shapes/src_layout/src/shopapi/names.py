NAMES = ["tea", "cups"]
