"""The reference service: one shop, one API and one data set, in variants to measure against each other."""
