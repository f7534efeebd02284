"""Helpers of the tests: real engines, databases, services and models, and made-up records."""
