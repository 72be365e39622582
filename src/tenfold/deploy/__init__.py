"""Rendering for targets that several patterns share, one file each: values in, files out. Pure."""
