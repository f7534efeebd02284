"""The mathematics of training. Imports torch, but no database and no HTTP."""
