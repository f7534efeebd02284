"""Experiments in a world with known truth: worded arithmetic, and a model small enough to be trained on a CPU."""
