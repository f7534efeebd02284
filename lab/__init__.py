"""A world where truth is cheap: worded arithmetic, a model small enough to be trained here, and what it proves."""
