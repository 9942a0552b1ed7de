"""The forward kernel in Gluon, for Hopper."""
