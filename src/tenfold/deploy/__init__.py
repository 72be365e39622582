"""One file a target that several patterns share: values in, files out, neither disk nor network."""
