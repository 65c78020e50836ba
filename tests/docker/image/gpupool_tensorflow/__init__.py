"""Stands in for the defaults package: answers the launch check in a moment, as it is told to."""
