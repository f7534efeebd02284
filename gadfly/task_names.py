"""The name of the task that a deployment has unless it is set to others."""

DEFAULT_TASK = "math"
"""The task of all rows of releases that knew no tasks."""
