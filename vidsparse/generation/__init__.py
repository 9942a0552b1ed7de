"""From a pipeline to a video."""
