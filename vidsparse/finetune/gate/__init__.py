"""Training a learned gate: a frozen model teaches small matrices which tiles its attention goes to."""
