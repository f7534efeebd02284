"""Durable records: committed to Postgres, or written to the spool on disk while Postgres is unavailable."""
