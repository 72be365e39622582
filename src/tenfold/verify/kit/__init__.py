"""Tools that the checks of several patterns share."""
