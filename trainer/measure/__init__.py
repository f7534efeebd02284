"""Measures a critic on held-out answers, and watches for failures while it learns."""
