"""What sparse attention would gain a model, from its settings: no weights, no download, no GPU."""
