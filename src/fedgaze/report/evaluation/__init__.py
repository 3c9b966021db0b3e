"""Evaluate the heatmaps of pictures in a folder, and the page about it."""
