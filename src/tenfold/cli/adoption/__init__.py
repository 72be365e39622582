"""What `tenfold init` finds out about a service, and the files that it writes."""
