"""Experiments: a grid of data sets, runs and seeds, trained cell by cell into one folder, and the statistics over it."""
