"""The shapes of the HTTP API, by subject. They import no database, so clients can share them."""
