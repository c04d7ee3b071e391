"""Names for videos of your own: inputs, answers, cameras, labels drawn in."""
